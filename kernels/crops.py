"""Which crop each example gets, and crops on a CPU: a loop that numba compiles once for each machine."""

import hashlib
from collections.abc import Callable
from functools import cache, lru_cache
from typing import TypeVar

import numpy as np
from torch import Tensor

Ids = TypeVar("Ids", Tensor, int)


def draws(id_B: Ids, low: int, high: int, flip: bool, padding: int) -> tuple[Ids, Ids, Ids]:
    """Offsets dy, dx in 0..2·padding and flips, of examples (int64) or of one, under a ``key``.

    They are bits 0-15, 16-30 and 31 of one hash.

    >>> draws(7, *key(seed=0, epoch=1), flip=True, padding=4)
    (8, 2, True)
    """
    bits_B = mix(mix((id_B & 0xFFFFFFFF) ^ low) ^ (id_B >> 32) ^ high)
    dy_B = ((bits_B & 0xFFFF) * (2 * padding + 1)) >> 16
    dx_B = (((bits_B >> 16) & 0x7FFF) * (2 * padding + 1)) >> 15
    return dy_B, dx_B, ((bits_B >> 31) & flip) == 1


@lru_cache(maxsize=64)
def key(seed: int, epoch: int) -> tuple[int, int]:
    """The low and high 32 bits that a seed and an epoch give all hashes."""
    digest = hashlib.sha256(f"augment/{seed}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def mix(x: Ids) -> Ids:
    """lowbias32 (C. Wellons) on int64: products wrap modulo 2^64, whose low 32 bits are those of uint32."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


@cache
def compiled(dtype: str) -> Callable[..., int] | None:
    """``_crop`` as machine code that computes in ``dtype``; None where numba is not installed."""
    try:
        from numba import njit
        from numba.extending import register_jitable
    except ImportError:
        return None
    register_jitable(mix)
    register_jitable(draws)
    normal = f"{dtype}[::1], {dtype}[::1]"
    signature = (
        "int64(uint8[:,:,:,::1], int64[::1], int64[::1], int64, int64, boolean, int64, "
        f"{normal}, {dtype}[:,:,:,::1])"
    )
    try:
        return njit(signature, nogil=True, cache=True)(_crop)
    except (OSError, RuntimeError):  # nowhere to keep it, or no room there
        return njit(signature, nogil=True)(_crop)


def _crop(
    image_NHWC: np.ndarray, row_B: np.ndarray, id_B: np.ndarray, low: int, high: int, flip: bool,
    padding: int, scale_K: np.ndarray, shift_K: np.ndarray, out_BHWC: np.ndarray,
) -> int:  # fmt: skip
    """Write the crops of the images ``row_B``; returns how many there were before one that does not exist.

    A crop is its image, or the mirrored one, moved as a whole by so many values: in one loop that is
    vectorised, whatever comes to lie where black belongs. Mirroring counts in unsigned numbers, because of
    signed ones numba asks whether they count from the end; it reads a copy, because a processor fetches
    ahead only for a loop that goes straight through memory.
    """
    images, height, width, _ = image_NHWC.shape
    values = height * width * 3
    image_NV, out_BV = image_NHWC.reshape(images, values), out_BHWC.reshape(len(row_B), values)
    # Two axes: FFCV's cache makes one axis of bytes read-only in what numba compiles later in the process.
    copy_1V, mirrored_1V = np.empty((1, values), np.uint8), np.empty((1, values), np.uint8)
    zero, one, two, three = np.uint64(0), np.uint64(1), np.uint64(2), np.uint64(3)
    line = np.uint64(width) * three
    for b in range(len(row_B)):
        row = row_B[b]
        if row < 0 or row >= images:
            return b
        dy, dx, mirror = draws(id_B[b], low, high, flip, padding)
        dy, dx = dy - padding, dx - padding
        source_V, out_V, out_HWC = image_NV[row], out_BV[b], out_BHWC[b]
        if mirror:
            dx = -dx
            for v in range(values):
                copy_1V[0, v] = source_V[v]
            for y in range(height):
                first = np.uint64(y) * line
                last = first + line - three
                for x in range(width):
                    at = np.uint64(x) * three
                    mirrored_1V[zero, first + at] = copy_1V[zero, last - at]
                    mirrored_1V[zero, first + at + one] = copy_1V[zero, last - at + one]
                    mirrored_1V[zero, first + at + two] = copy_1V[zero, last - at + two]
            source_V = mirrored_1V[0]
        moved = (dy * width + dx) * 3
        stop = min(values, values - moved)
        for start in range(max(0, -moved), stop, len(scale_K)):
            number_K = out_V[start : min(start + len(scale_K), stop)]
            byte_K = source_V[start + moved :]
            for k in range(len(number_K)):
                number_K[k] = scale_K.dtype.type(byte_K[k]) * scale_K[k] + shift_K[k]
        for y in range(height):
            left, right = (-dx, width - dx) if 0 <= y + dy < height else (width, width)
            for x in range(min(left, width)):
                for c in range(3):
                    out_HWC[y, x, c] = shift_K[c]
            for x in range(max(right, 0), width):
                for c in range(3):
                    out_HWC[y, x, c] = shift_K[c]
    return len(row_B)
