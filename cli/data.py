"""``rumfast data``: pack, describe and verify data sets."""

from pathlib import Path
from typing import Annotated

import typer

from rumfast.cli.options import Json
from rumfast.cli.output import show

app = typer.Typer(no_args_is_help=True, help="Pack, describe and verify data sets.")
Folder = Annotated[Path, typer.Argument(help="Packed folder.")]


@app.command()
def pack(
    source: Annotated[
        str, typer.Argument(help="digits, cifar10, cifar100, folder:DIR, parquet:DIR or npz:FILE.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    label_noise: Annotated[float, typer.Option(help="Share of training labels to flip.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the flips.")] = 0,
    json_output: Json = False,
) -> None:
    """Decode a source once into FFCV betons with a fingerprint of their content."""
    from rumfast.data import dataset_info
    from rumfast.data import pack as pack_source

    pack_source(source, out, label_noise=label_noise, seed=seed)
    show(_brief(dataset_info(out)), json_output, "data-pack")


@app.command()
def info(folder: Folder, json_output: Json = False) -> None:
    """Describe a packed data set."""
    from rumfast.data import dataset_info

    show(_brief(dataset_info(folder)), json_output, "data-info")


@app.command()
def verify(folder: Folder, json_output: Json = False) -> None:
    """Read a packed data set and compare its content with its fingerprint."""
    from rumfast.data import verify_dataset

    show(verify_dataset(folder), json_output, "data-verify")


def _brief(record: dict) -> dict:
    shown = (
        "name",
        "source",
        "shape",
        "counts",
        "classes",
        "label_noise",
        "flipped",
        "mean",
        "std",
        "bytes",
        "fingerprint",
    )
    return {key: record[key] for key in shown if key in record}
