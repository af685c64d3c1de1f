"""On-device augmentation: gather by example id, random crop, horizontal flip, normalise.

    out[b, c, y, x] = (pad(image[id_b])[y + dy_b, x' + dx_b, c] / 255 - mean_c) / std_c,   x' = x or W-1-x

`pad` adds `crop_padding` black pixels on each side, dy and dx are uniform on 0..2·crop_padding, and each
image is flipped with probability one half. All three come from an integer hash of (seed, epoch, example id):
the same on every device, in every batch, at every batch size.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def augment(
    image_NHWC: Tensor,
    id_B: Tensor,
    *,
    seed: int,
    epoch: int,
    flip: bool,
    crop_padding: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
) -> Tensor:
    """Gather the examples `id_B` (int64) of the resident uint8 `image_NHWC` and augment them.

    Returns [B, 3, H, W] of `dtype`, channels-last in memory unless told otherwise; `mean` and `std` are per
    channel in [0, 1] units. `flip=False` and `crop_padding=0` leave gather and normalise alone.

    >>> image_NHWC = torch.full((2, 4, 4, 3), 255, dtype=torch.uint8)
    >>> plain = dict(flip=False, crop_padding=0, mean=(0.5,) * 3, std=(0.5,) * 3)
    >>> augment(image_NHWC, torch.tensor([1]), seed=0, epoch=0, **plain).unique()
    tensor([1.])
    """
    return augment_images(
        image_NHWC.index_select(0, id_B),
        id_B,
        seed=seed,
        epoch=epoch,
        flip=flip,
        crop_padding=crop_padding,
        mean=mean,
        std=std,
        dtype=dtype,
        channels_last=channels_last,
    )


def augment_images(
    image_BHWC: Tensor,
    id_B: Tensor,
    *,
    seed: int,
    epoch: int,
    flip: bool,
    crop_padding: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
) -> Tensor:
    """As `augment`, for uint8 images that are already gathered: `image_BHWC[b]` is example `id_B[b]`."""
    if image_BHWC.dtype != torch.uint8 or image_BHWC.ndim != 4 or image_BHWC.shape[3] != 3:
        found = f"{image_BHWC.dtype} {tuple(image_BHWC.shape)}"
        raise ValueError(f"image: got {found}, expected torch.uint8 [B, H, W, 3]")
    if flip or crop_padding:
        dy_B, dx_B, flip_B = _draws(id_B, seed, epoch, flip, crop_padding)
        image_BHWC = _crop_and_flip(image_BHWC, dy_B, dx_B, flip_B, crop_padding)
    out = _normalise(image_BHWC, tuple(mean), tuple(std), dtype).permute(0, 3, 1, 2)
    return out if channels_last else out.contiguous()


def normalise(image_BHWC: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(image / 255 − mean) / std of uint8 [B, H, W, 3], as float32 [B, 3, H, W], channels-last in memory."""
    return _normalise(image_BHWC, tuple(mean), tuple(std), torch.float32).permute(0, 3, 1, 2)


def _draws(id_B: Tensor, seed: int, epoch: int, flip: bool, padding: int) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets dy, dx in 0..2·padding (int64) and flips (bool): bits 0-15, 16-30 and 31 of one hash."""
    low, high = _key(seed, epoch)
    bits_B = _mix(_mix((id_B & 0xFFFFFFFF) ^ low) ^ (id_B >> 32) ^ high)
    dy_B = ((bits_B & 0xFFFF) * (2 * padding + 1)) >> 16
    dx_B = (((bits_B >> 16) & 0x7FFF) * (2 * padding + 1)) >> 15
    flip_B = (bits_B >> 31) == 1 if flip else torch.zeros_like(bits_B, dtype=torch.bool)
    return dy_B, dx_B, flip_B


@lru_cache(maxsize=64)
def _key(seed: int, epoch: int) -> tuple[int, int]:
    digest = hashlib.sha256(f"augment/{seed}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def _mix(x: Tensor) -> Tensor:
    """lowbias32 (C. Wellons) on int64: products wrap modulo 2^64, whose low 32 bits are those of uint32."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def _crop_and_flip(image_BHWC: Tensor, dy_B: Tensor, dx_B: Tensor, flip_B: Tensor, padding: int) -> Tensor:
    batch, height, width, _ = image_BHWC.shape
    device = image_BHWC.device
    padded = torch.nn.functional.pad(image_BHWC, (0, 0, padding, padding, padding, padding))
    row_BH = torch.arange(batch, device=device)[:, None] * padded.shape[1] + dy_B[:, None]
    row_BH = row_BH + torch.arange(height, device=device)
    x_W = torch.arange(width, device=device)
    column_BW = dx_B[:, None] + torch.where(flip_B[:, None], width - 1 - x_W, x_W)
    pixel_BHW = row_BH[:, :, None] * padded.shape[2] + column_BW[:, None, :]
    return padded.view(-1, 3).index_select(0, pixel_BHW.view(-1)).view(batch, height, width, 3)


def _normalise(image_BHWC: Tensor, mean: tuple, std: tuple, dtype: torch.dtype) -> Tensor:
    batch, height, width, _ = image_BHWC.shape
    # Half precision would round twice.
    exact = torch.promote_types(dtype, torch.float32)
    scale_K, shift_K = _scale_shift(mean, std, height * width, exact, image_BHWC.device)
    out_BK = image_BHWC.reshape(batch, height * width * 3).to(exact).mul_(scale_K).add_(shift_K)
    return out_BK.to(dtype).view(batch, height, width, 3)


@lru_cache(maxsize=16)
def _scale_shift(
    mean: tuple, std: tuple, pixels: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    # One entry per pixel and channel: broadcasting over an inner axis of three runs unvectorised. Cached,
    # because each batch would wait for a fresh copy to the device.
    with torch.inference_mode(False):
        std_3 = torch.tensor(std, dtype=torch.float64)
        mean_3 = torch.tensor(mean, dtype=torch.float64)
        scale_K, shift_K = (1 / (255 * std_3)).repeat(pixels), (-mean_3 / std_3).repeat(pixels)
        return scale_K.to(device, dtype), shift_K.to(device, dtype)
