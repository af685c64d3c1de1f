"""The child process that writes one beton: `python -m rumfast.data.writer ARRAYS.npz TARGET.beton`."""

import multiprocessing
import os
import sys
import threading
import time
from typing import Any

import numpy as np

PAGE_BYTES = 1 << 21  # FFCV's smallest page; small sets waste less of it
WORKER_DIED = 70  # exit status when FFCV's worker process failed, which FFCV itself never notices


def write(arrays: str, target: str) -> None:
    """Write `image_NHWC` and `label_N` of an npz to a beton with one worker, and delete the npz."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    with np.load(arrays, allow_pickle=False) as content:
        image_NHWC, label_N = content["image_NHWC"], content["label_N"]
    os.unlink(arrays)
    page_bytes = max(PAGE_BYTES, 1 << (image_NHWC[0].nbytes - 1).bit_length())
    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
    writer = DatasetWriter(target, fields, page_size=page_bytes, num_workers=1)
    threading.Thread(target=_exit_when_worker_fails, daemon=True).start()
    writer.from_indexed_dataset(list(zip(image_NHWC, label_N.tolist(), strict=True)))


def _exit_when_worker_fails() -> None:
    workers: set[Any] = set()
    while not any(worker.exitcode for worker in workers):
        workers.update(multiprocessing.active_children())
        time.sleep(0.01)
    os._exit(WORKER_DIED)


if __name__ == "__main__":
    write(sys.argv[1], sys.argv[2])
