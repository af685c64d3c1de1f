"""Gather by example id, random crop, horizontal flip and normalise, from uint8 images to floating point.

    out[b, c, y, x] = (pad(image[id_b])[y + dy_b, x' + dx_b, c] / 255 - mean_c) / std_c,   x' = x or W-1-x

`pad` adds `crop_padding` black pixels on each side, dy and dx are uniform on 0..2·crop_padding, and each
image is flipped with probability one half. All three come from an integer hash of (seed, epoch, example id).
Everything is the same on every device, in every batch and at every batch size, to the last bit.

A CPU takes a loop that numba compiles once for each machine; without numba, the plain-torch reference.
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache

import numpy as np
import torch
from torch import Tensor

from rumfast.kernels.backend import Backend, Meta, jit, pick_backend, power_of_2, tl
from rumfast.kernels.crops import compiled, draws, key

PIXELS = 256  # that are normalised at a time on a CPU: their scales and shifts stay in its first cache


def reference_augment(
    image_NHWC: Tensor, id_B: Tensor | None, gather: bool, seed: int, epoch: int, flip: bool,
    crop_padding: int, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """The formula, every pixel gathered from the padded image; as the operator, [B, H, W, 3]."""
    image_BHWC = image_NHWC.index_select(0, id_B) if gather and id_B is not None else image_NHWC
    if id_B is not None and (flip or crop_padding):
        drawn = draws(id_B, *key(seed, epoch), flip, crop_padding)
        image_BHWC = _crop_and_flip(image_BHWC, *drawn, crop_padding)
    exact = torch.promote_types(dtype, torch.float32)  # half precision would round twice
    scale_3, shift_3 = _scale_shift(tuple(mean), tuple(std), exact, image_NHWC.device)
    return image_BHWC.to(exact).mul_(scale_3).add_(shift_3).to(dtype)


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


@cache
def _scale_shift(mean: tuple, std: tuple, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """1 / (255 std) and -mean / std for each channel.

    Kept for good: each batch would wait for a fresh copy to the device, and recorded calls read this one.
    """
    with torch.inference_mode(False):
        std_3 = torch.tensor(std, dtype=torch.float64)
        mean_3 = torch.tensor(mean, dtype=torch.float64)
        scale_3, shift_3 = 1 / (255 * std_3), -mean_3 / std_3
        return scale_3.to(device, dtype), shift_3.to(device, dtype)


@jit
def _mix(x):
    """``crops.mix`` on uint32."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@jit
def _augment_kernel(
    image, image_stride, row_stride, column_stride, channel_stride, images, id, odd_low, odd_high,
    scale, shift, out,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PADDING: tl.constexpr, FLIP: tl.constexpr,
    GATHER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK values of one image per program; NaN where the image does not exist."""
    batch = tl.program_id(0).to(tl.int64)
    value = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = value < HEIGHT * WIDTH * 3
    channel = value % 3
    x = value // 3 % WIDTH
    y = value // (3 * WIDTH)
    row = batch
    if GATHER:
        row = tl.load(id + batch)
    exists = (row >= 0) & (row < images)
    if FLIP or PADDING > 0:
        example = tl.load(id + batch)
        bits = _mix(example.to(tl.uint32) ^ (odd_low >> 1).to(tl.uint32))
        bits = _mix(bits ^ (example >> 32).to(tl.uint32) ^ (odd_high >> 1).to(tl.uint32))
        if FLIP:
            x = tl.where((bits >> 31) == 1, WIDTH - 1 - x, x)
        y += ((bits & 0xFFFF) * (2 * PADDING + 1) >> 16).to(tl.int32) - PADDING
        x += (((bits >> 16) & 0x7FFF) * (2 * PADDING + 1) >> 15).to(tl.int32) - PADDING
    inside = real & (y >= 0) & (y < tl.where(exists, HEIGHT, 0)) & (x >= 0) & (x < WIDTH)
    address = image + row * image_stride + y.to(tl.int64) * row_stride
    address += x.to(tl.int64) * column_stride + channel.to(tl.int64) * channel_stride
    pixel = tl.load(address, inside, other=0).to(tl.float32)  # exact, and wider where scale is
    normal = pixel * tl.load(scale + channel) + tl.load(shift + channel)
    normal = tl.where(exists, normal, float("nan"))
    tl.store(out + batch * (HEIGHT * WIDTH * 3) + value, normal.to(out.dtype.element_ty), real)


def meta(height: int, width: int) -> Meta:
    """Up to 1024 values of an image per program."""
    return {"BLOCK": power_of_2(min(1024, height * width * 3)), "num_warps": 4}


def _launch(
    image_NHWC: Tensor, id_B: Tensor | None, gather: bool, seed: int, epoch: int, flip: bool,
    crop_padding: int, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    images, height, width, _ = image_NHWC.shape
    out = _empty(image_NHWC, id_B, dtype)
    exact = torch.promote_types(dtype, torch.float32)
    scale_3, shift_3 = _scale_shift(tuple(mean), tuple(std), exact, image_NHWC.device)
    blocks = meta(height, width)
    # Odd and of one width always, so that no key makes Triton compile the kernel anew.
    low, high = (1 << 40 | half << 1 | 1 for half in key(seed, epoch))
    drawn = id_B is not None and (flip or crop_padding > 0)
    if out.numel():
        with torch.cuda.device_of(out):
            _augment_kernel[len(out), -(-height * width * 3 // blocks["BLOCK"])](
                image_NHWC, *image_NHWC.stride(), images, None if id_B is None else id_B.contiguous(),
                low, high, scale_3, shift_3, out, HEIGHT=height, WIDTH=width,
                PADDING=crop_padding if drawn else 0, FLIP=flip and drawn, GATHER=gather, **blocks,
                enable_fp_fusion=False,  # a fused multiply-add rounds once, a CPU's two operations twice
            )  # fmt: skip
    return out


def _empty(image_NHWC: Tensor, id_B: Tensor | None, dtype: torch.dtype) -> Tensor:
    batch = len(image_NHWC) if id_B is None else len(id_B)
    return image_NHWC.new_empty((batch, *image_NHWC.shape[1:]), dtype=dtype)


def _on_cpu(
    image_NHWC: Tensor, id_B: Tensor | None, gather: bool, seed: int, epoch: int, flip: bool,
    crop_padding: int, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    exact = torch.promote_types(dtype, torch.float32)  # half precision would round twice
    crop = compiled(str(exact).removeprefix("torch."))
    if crop is None:
        options = seed, epoch, flip, crop_padding, mean, std, dtype
        return reference_augment(image_NHWC, id_B, gather, *options)
    out = _empty(image_NHWC, id_B, exact)
    place_B = torch.arange(len(out))
    example_B = place_B if id_B is None else id_B.contiguous()
    row_B = example_B if gather else place_B
    if not image_NHWC.is_contiguous():
        image_NHWC, row_B = image_NHWC.index_select(0, row_B), place_B
    normal = _repeated(tuple(mean), tuple(std), exact)
    drawn = example_B.numpy(), *key(seed, epoch), flip, crop_padding
    done = crop(image_NHWC.numpy(), row_B.numpy(), *drawn, *normal, out.numpy())
    if done < len(out):
        raise IndexError(f"id: got {int(row_B[done])}, expected 0..{len(image_NHWC) - 1}")
    return out.to(dtype)


@lru_cache(maxsize=16)
def _repeated(mean: tuple, std: tuple, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """``_scale_shift`` of PIXELS pixels."""
    scale_3, shift_3 = _scale_shift(mean, std, dtype, torch.device("cpu"))
    return scale_3.repeat(PIXELS).numpy(), shift_3.repeat(PIXELS).numpy()


_augment = torch.library.custom_op("rumfast::augment", _on_cpu, mutates_args=(), device_types="cpu")
_augment.register_kernel("cuda")(_launch)
_augment.register_fake(lambda image_NHWC, id_B, *rest: _empty(image_NHWC, id_B, dtype=rest[-1]))


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
    backend: Backend = "auto",
) -> Tensor:
    """Gather the examples ``id_B`` of a resident image set and augment and normalise them.

    Args:
        image_NHWC: [N, H, W, 3] uint8.
        id_B: [B] int64 in [0, N).
        seed, epoch: with an example's id, what its crop and flip depend on; int64.
        flip: whether half of the images are flipped.
        crop_padding: black pixels around an image before it is cropped back to H × W, 0 for no cropping.
        mean, std: of each channel, in units where 255 is 1.
        dtype: floating point; float32 is rounded to the half precisions.
        channels_last: the layout in memory, else channels first.
        backend: see ``rumfast.kernels.backend``.

    Returns:
        [B, 3, H, W] of ``dtype``.

    Raises:
        ValueError: a shape, dtype or number is not as above.
        IndexError: an id is out of range. On CUDA its image is NaN instead.

    >>> image_NHWC = torch.full((2, 4, 4, 3), 255, dtype=torch.uint8)
    >>> plain = dict(flip=False, crop_padding=0, mean=(0.5,) * 3, std=(0.5,) * 3)
    >>> augment(image_NHWC, torch.tensor([1]), seed=0, epoch=0, **plain).unique()
    tensor([1.])
    """
    draw = seed, epoch, flip, crop_padding
    return _run(image_NHWC, id_B, True, *draw, mean, std, dtype, channels_last, backend)


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
    backend: Backend = "auto",
) -> Tensor:
    """As ``augment``, for images that are gathered already: ``image_BHWC[b]`` is example ``id_B[b]``."""
    if id_B.shape != image_BHWC.shape[:1]:
        raise ValueError(
            f"id: got {tuple(id_B.shape)}, expected {tuple(image_BHWC.shape[:1])}, one per image"
        )
    draw = seed, epoch, flip, crop_padding
    return _run(image_BHWC, id_B, False, *draw, mean, std, dtype, channels_last, backend)


def normalise(
    image_BHWC: Tensor, mean: Sequence[float], std: Sequence[float], *, backend: Backend = "auto"
) -> Tensor:
    """(image / 255 − mean) / std of uint8 [B, H, W, 3], as float32 [B, 3, H, W], channels-last in memory."""
    return _run(image_BHWC, None, False, 0, 0, False, 0, mean, std, torch.float32, True, backend)


def _run(
    image_NHWC: Tensor, id_B: Tensor | None, gather: bool, seed: int, epoch: int, flip: bool,
    crop_padding: int, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype,
    channels_last: bool, backend: Backend,
) -> Tensor:  # fmt: skip
    if image_NHWC.dtype != torch.uint8 or image_NHWC.ndim != 4 or image_NHWC.shape[3] != 3:
        found = f"{image_NHWC.dtype} {tuple(image_NHWC.shape)}"
        raise ValueError(f"image: got {found}, expected torch.uint8 [B, H, W, 3]")
    if id_B is not None and (id_B.dtype != torch.int64 or id_B.ndim != 1):
        raise ValueError(f"id: got {id_B.dtype} {tuple(id_B.shape)}, expected torch.int64 [B]")
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"mean, std: got {len(mean)} and {len(std)} numbers, expected 3 each")
    if not 0 <= crop_padding < 1 << 15:
        raise ValueError(f"crop_padding: got {crop_padding}, expected 0..32767")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype: got {dtype}, expected floating point")
    # On a CPU, calling the operator costs more than the operator; only a tracer needs it there.
    traced = type(image_NHWC) is not Tensor or torch.compiler.is_compiling()
    kernels: dict[str, Callable[..., Tensor]] = {
        "auto": _augment if traced or image_NHWC.is_cuda else _on_cpu,
        "triton": _launch,
        "torch": reference_augment,
    }
    normal = [float(value) for value in mean], [float(value) for value in std]
    draw = seed, epoch, flip, crop_padding
    out = kernels[pick_backend(backend, image_NHWC)](image_NHWC, id_B, gather, *draw, *normal, dtype)
    out = out.permute(0, 3, 1, 2)
    return out if channels_last else out.contiguous()
