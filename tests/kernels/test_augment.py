import numpy as np
import pytest
import torch

from rumfast.kernels.augment import _draws, augment, augment_images

MEAN, STD = (0.1, 0.4, 0.7), (0.2, 0.3, 0.5)
PINNED = ([0, 6, 3, 5, 1], [8, 4, 7, 0, 3], [False, False, True, True, True])
OPTIONS = dict(seed=5, epoch=2, mean=MEAN, std=STD)


def images(n=40, size=6):
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8))


def slow(image_NHWC, id_B, flip, padding, seed=5, epoch=2):
    """The formula pixel by pixel in float64, given the draws."""
    dy_B, dx_B, flip_B = _draws(id_B, seed, epoch, flip, padding)
    _, height, width, _ = image_NHWC.shape
    out = np.empty((len(id_B), 3, height, width))
    for b, row in enumerate(id_B.tolist()):
        for y in range(height):
            for x in range(width):
                source_y = y + int(dy_B[b]) - padding
                source_x = (width - 1 - x if flip_B[b] else x) + int(dx_B[b]) - padding
                inside = 0 <= source_y < height and 0 <= source_x < width
                pixel = image_NHWC[row, source_y, source_x].numpy() if inside else np.zeros(3)
                out[b, :, y, x] = (pixel / 255 - np.array(MEAN)) / np.array(STD)
    return out


@pytest.mark.parametrize("flip, padding", [(False, 0), (True, 0), (False, 2), (True, 1), (True, 9)])
@pytest.mark.parametrize("batch", [0, 1, 7])
def test_agrees_with_a_loop_over_pixels(flip, padding, batch):
    image_NHWC, id_B = images(), torch.arange(39, 39 - batch, -1)
    out = augment(image_NHWC, id_B, flip=flip, crop_padding=padding, dtype=torch.float64, **OPTIONS)
    np.testing.assert_allclose(out, slow(image_NHWC, id_B, flip, padding), rtol=1e-12, atol=1e-12)
    single = augment(image_NHWC, id_B, flip=flip, crop_padding=padding, **OPTIONS)
    np.testing.assert_allclose(single, out, rtol=1e-5, atol=1e-6)


def test_one_image_hand_worked():
    image = torch.tensor([[[[0, 51, 255], [255, 0, 0]], [[0, 0, 0], [0, 0, 0]]]], dtype=torch.uint8)
    plain = dict(flip=False, crop_padding=0, mean=(0.0, 0.2, 0.5), std=(1.0, 0.2, 0.5))
    out = augment(image, torch.tensor([0]), seed=0, epoch=0, **plain)
    torch.testing.assert_close(out[0, :, 0, 0], torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(out[0, :, 0, 1], torch.tensor([1.0, -1.0, -1.0]))


def test_an_image_does_not_depend_on_its_neighbours():
    image_NHWC, id_B = images(), torch.randperm(40, generator=torch.Generator().manual_seed(0))
    whole = augment(image_NHWC, id_B, flip=True, crop_padding=2, **OPTIONS)
    for size in (1, 3, 40):
        parts = [augment(image_NHWC, part, flip=True, crop_padding=2, **OPTIONS) for part in id_B.split(size)]
        assert torch.equal(torch.cat(parts), whole)
    gathered = augment_images(image_NHWC[id_B], id_B, flip=True, crop_padding=2, **OPTIONS)
    assert torch.equal(gathered, whole)


def test_layout_and_dtype():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        out = augment(images(), torch.arange(5), flip=True, crop_padding=1, dtype=dtype, **OPTIONS)
        assert out.shape == (5, 3, 6, 6) and out.dtype == dtype
        assert out.is_contiguous(memory_format=torch.channels_last)
    out = augment(images(), torch.arange(5), flip=True, crop_padding=1, channels_last=False, **OPTIONS)
    assert out.is_contiguous()


def test_half_precision_rounds_once():
    id_B = torch.arange(40)
    exact = augment(images(), id_B, flip=False, crop_padding=0, **OPTIONS)
    half = augment(images(), id_B, flip=False, crop_padding=0, dtype=torch.bfloat16, **OPTIONS)
    assert torch.equal(half, exact.bfloat16())


def test_draws_are_pinned():
    """A changed hash would change every trained member."""
    dy_B, dx_B, flip_B = _draws(torch.tensor([0, 1, 2, 49_999, 2**40]), 0, 0, True, 4)
    assert (dy_B.tolist(), dx_B.tolist(), flip_B.tolist()) == PINNED


def test_draws_are_uniform_and_independent():
    n, choices = 90_000, 9
    dy_B, dx_B, flip_B = _draws(torch.arange(n), 3, 1, True, 4)
    cells = torch.bincount((dy_B * choices + dx_B) * 2 + flip_B, minlength=2 * choices**2).double()
    expected = n / len(cells)
    chi2 = ((cells - expected) ** 2 / expected).sum()
    assert chi2 < 161 + 5 * (2 * 161) ** 0.5  # 162 cells: mean 161, five standard deviations
    assert abs(flip_B.double().mean() - 0.5) < 0.01


def test_seeds_and_epochs_never_share_draws():
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (2**62, 0), (-1, 0)]
    drawn = [torch.stack(_draws(torch.arange(500), *key, False, 4)[:2]) for key in keys]
    for i, first in enumerate(drawn):
        for second in drawn[:i]:
            agreement = (first == second).double().mean()
            assert abs(agreement - 1 / 9) < 0.06


def test_flips_stay_off():
    assert not _draws(torch.arange(100), 0, 0, False, 4)[2].any()


def test_normalisation_cached_under_inference_mode_serves_training():
    image_NHWC, plain = images(size=5), dict(flip=False, crop_padding=0, seed=0, epoch=0, mean=MEAN, std=STD)
    with torch.inference_mode():
        augment(image_NHWC, torch.arange(2), **plain)
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (augment(image_NHWC, torch.arange(2), **plain) * weight).sum().backward()
    assert weight.grad is not None


def test_refuses_what_is_not_uint8_nhwc():
    with pytest.raises(ValueError, match="expected torch.uint8"):
        augment(images().float(), torch.arange(2), flip=False, crop_padding=0, **OPTIONS)
    with pytest.raises(ValueError, match="expected torch.uint8"):
        augment(images().permute(0, 3, 1, 2), torch.arange(2), flip=False, crop_padding=0, **OPTIONS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_draws_and_pixels_equal_the_cpu():
    image_NHWC, id_B = images(), torch.randperm(40)
    ids = torch.arange(100_000) * 12_345
    for ours, theirs in zip(_draws(ids, 1, 2, True, 4), _draws(ids.cuda(), 1, 2, True, 4), strict=True):
        assert torch.equal(ours, theirs.cpu())
    out = augment(image_NHWC, id_B, flip=True, crop_padding=2, **OPTIONS)
    there = augment(image_NHWC.cuda(), id_B.cuda(), flip=True, crop_padding=2, **OPTIONS)
    torch.testing.assert_close(there.cpu(), out, rtol=1e-6, atol=1e-6)
    assert there.is_contiguous(memory_format=torch.channels_last)
