"""Data: a source is packed into betons, loaded as a Dataset, and split into forget and retain set."""

from rumfast.data.beton import read_beton, write_beton
from rumfast.data.dataset import Dataset, Examples
from rumfast.data.packing import dataset_info, load_dataset, pack, verify_dataset
from rumfast.data.sources import SOURCES, dataset_from_source, load_source
from rumfast.data.splits import Split, check_ids, ids_digest, select_forget

__all__ = [
    "SOURCES",
    "Dataset",
    "Examples",
    "Split",
    "check_ids",
    "dataset_from_source",
    "dataset_info",
    "ids_digest",
    "load_dataset",
    "load_source",
    "pack",
    "read_beton",
    "select_forget",
    "verify_dataset",
    "write_beton",
]
