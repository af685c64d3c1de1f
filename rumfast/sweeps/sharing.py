"""One copy of the images in memory for all worker processes of a machine."""

import os
from dataclasses import replace

import numpy as np

from rumfast.data import Dataset, Examples
from rumfast.sweeps.spec import DataRef


class SharedImages:
    """Decoded images of data sets in anonymous memory of this process, which others of its user can map.

    The memory has no name on any disk: it is gone with the last process that uses it, however that ended.
    """

    def __init__(self) -> None:
        self._handles: dict[str, int] = {}

    def path(self, ref: DataRef) -> str | None:
        """Where workers find the images, training before test ones; None on systems without such memory.

        Raises:
            MismatchError: the data set is not the one that ``ref`` names.
        """
        if not hasattr(os, "memfd_create"):
            return None
        if ref.fingerprint not in self._handles:
            data = ref.load()
            handle = os.memfd_create(f"rumfast-{ref.fingerprint[:12]}")
            self._handles[ref.fingerprint] = handle
            with os.fdopen(os.dup(handle), "wb") as memory:
                for examples in (data.train, data.test):
                    memory.write(examples.image_NHWC.data)
        return f"/proc/{os.getpid()}/fd/{self._handles[ref.fingerprint]}"

    def close(self) -> None:
        """Forget the images; workers that map them keep them."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()


def with_shared_images(data: Dataset, path: str) -> Dataset:
    """The same data set over the images at ``path``, so that its own can be freed."""
    parts, offset = [], 0
    for examples in (data.train, data.test):
        shape = examples.image_NHWC.shape
        # Copy on write: torch wants memory it may write to, and never does.
        image_NHWC = np.memmap(path, np.uint8, "c", offset, shape)
        parts.append(Examples(image_NHWC, examples.label_N))
        offset += image_NHWC.nbytes
    return replace(data, train=parts[0], test=parts[1])
