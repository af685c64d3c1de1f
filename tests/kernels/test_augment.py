import errno
import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from rumfast.kernels.augment import augment, augment_images, normalise
from rumfast.kernels.crops import compiled, draws, key

MEAN, STD = (0.1, 0.4, 0.7), (0.2, 0.3, 0.5)
PINNED = ([0, 6, 3, 5, 1], [8, 4, 7, 0, 3], [False, False, True, True, True])
OPTIONS = dict(seed=5, epoch=2, mean=MEAN, std=STD)


def images(n=40, size=6):
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8))


def slow(image_NHWC, id_B, flip, padding, seed=5, epoch=2):
    """The formula pixel by pixel in float64, given the draws."""
    dy_B, dx_B, flip_B = draws(id_B, *key(seed, epoch), flip, padding)
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
@pytest.mark.parametrize("batch", [1, 7])
def test_agrees_with_a_loop_over_pixels(flip, padding, batch):
    image_NHWC, id_B = images(), torch.arange(39, 39 - batch, -1)
    out = augment(image_NHWC, id_B, flip=flip, crop_padding=padding, dtype=torch.float64, **OPTIONS)
    np.testing.assert_allclose(out, slow(image_NHWC, id_B, flip, padding), rtol=1e-12, atol=1e-12)
    single = augment(image_NHWC, id_B, flip=flip, crop_padding=padding, **OPTIONS)
    np.testing.assert_allclose(single, out, rtol=1e-5, atol=1e-6)


BRANCHES = {
    "crop and flip": dict(flip=True, crop_padding=2),
    "crop": dict(flip=False, crop_padding=1),
    "flip, half precision": dict(flip=True, crop_padding=0, dtype=torch.bfloat16),
    "crop and flip, half precision": dict(flip=True, crop_padding=3, dtype=torch.float16),
    "crop beyond the image, float64": dict(flip=True, crop_padding=7, dtype=torch.float64),
    "normalise alone": dict(flip=False, crop_padding=0, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_bits_are_the_same_everywhere(name, device):
    """The kernel, the CPU's compiled loop, and the reference; from gathered images as well."""
    options = OPTIONS | BRANCHES[name]
    image_NHWC = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (50, 5, 9, 3), dtype=np.uint8))
    for ids in ([49, 0, 7, 7, 12, 33, 1, 2, 3], [11], []):
        id_B = torch.tensor(ids, dtype=torch.int64)
        reference = augment(image_NHWC, id_B, backend="torch", **options)
        assert torch.equal(augment(image_NHWC, id_B, **options), reference)
        assert torch.equal(augment_images(image_NHWC[id_B], id_B, **options), reference)
        there, id_there = image_NHWC.to(device), id_B.to(device)
        kernel = augment(there, id_there, backend="triton", **options)
        gathered = augment_images(there[id_there], id_there, backend="triton", **options)
        if reference.dtype == torch.bfloat16 and device.type == "cpu":
            # Triton's interpreter cuts off the digits that devices round.
            single = augment(image_NHWC, id_B, backend="torch", **options | dict(dtype=torch.float32))
            reference = (single.view(torch.int32) & -65536).view(torch.float32).bfloat16()
        assert torch.equal(kernel.cpu(), reference) and torch.equal(gathered, kernel)
        assert kernel.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_byte_of_every_channel_is_rounded_as_in_the_reference(dtype):
    byte = torch.arange(256, dtype=torch.uint8)
    image_NHWC = torch.stack([byte, byte.flip(0), byte.roll(9)], 1).view(1, 16, 16, 3)
    options = OPTIONS | dict(flip=False, crop_padding=0, dtype=dtype)
    bits = [
        augment(image_NHWC, torch.tensor([0, 0]), backend=backend, **options)
        .permute(0, 2, 3, 1)
        .view(torch.int8)
        for backend in ("auto", "torch")
    ]
    assert torch.equal(*bits) and len(bits[0].unique()) > 100


@pytest.fixture
def compiled_anew(monkeypatch, tmp_path):
    """The loop as if for the first time on this machine; patches are undone after the test."""
    numba = pytest.importorskip("numba")
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    compiled.cache_clear()
    yield monkeypatch
    compiled.cache_clear()


def crops():
    return augment(images(), torch.arange(39, -1, -3), flip=True, crop_padding=2, **OPTIONS)


def test_without_numba_the_reference_gives_the_same(compiled_anew):
    expected = crops()
    assert compiled("float32") is not None
    compiled.cache_clear()
    compiled_anew.setitem(sys.modules, "numba", None)
    assert torch.equal(crops(), expected) and compiled("float32") is None
    with pytest.raises(IndexError):
        augment(images(), torch.tensor([40]), flip=False, crop_padding=0, **OPTIONS)


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["nowhere to write", "full disk"])
def test_compiles_where_nothing_can_be_kept(compiled_anew, fault):
    from numba.core import caching

    def save(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if fault == "full disk":
        compiled_anew.setattr(caching.IndexDataCacheFile, "save", save)
    else:
        compiled_anew.setattr(caching.CacheImpl, "_locator_classes", [])
    expected = augment(
        images(), torch.arange(39, -1, -3), flip=True, crop_padding=2, backend="torch", **OPTIONS
    )
    assert torch.equal(crops(), expected) and compiled("float32") is not None


def test_threads_do_not_disturb_each_other():
    expected = crops()
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(one, expected) for one in pool.map(lambda _: crops(), range(40)))


@pytest.mark.parametrize("backend", ["triton", "auto"])
def test_strides_and_several_blocks_per_image(backend, device):
    image_NHWC = torch.randint(256, (3, 26, 25, 3), dtype=torch.uint8)  # 1950 values: two blocks of 1024
    id_B = torch.tensor([2, 0])
    expected = augment(image_NHWC, id_B, flip=True, crop_padding=4, backend="torch", **OPTIONS)
    planar = image_NHWC.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0).to(device)
    ids = id_B.repeat_interleave(2)[::2].to(device)
    assert torch.equal(
        augment(planar, ids, flip=True, crop_padding=4, backend=backend, **OPTIONS).cpu(), expected
    )
    one = image_NHWC[:1].expand(4, -1, -1, -1).to(device)
    plain = normalise(one, MEAN, STD, backend=backend)
    assert torch.equal(plain.cpu(), normalise(image_NHWC[:1], MEAN, STD, backend="torch").expand_as(plain))


def test_draws_of_any_key_and_example_are_the_same_in_kernel_and_loop(device):
    # Of a 1 × 1 image with one black pixel around it, one crop in nine is white.
    id_B = torch.tensor([0, 1, 2**31, 2**32 - 1, 2**40 + 3, 2**62] + list(range(10, 40)))
    image = torch.full((len(id_B), 1, 1, 3), 255, dtype=torch.uint8)
    for seed, epoch in ((0, 0), (2**63 - 1, 1), (-(2**63), 2**40)):
        options = dict(seed=seed, epoch=epoch, flip=False, crop_padding=1, mean=(0.0,) * 3, std=(1.0,) * 3)
        dy_B, dx_B, _ = draws(id_B, *key(seed, epoch), False, 1)
        white = (dy_B == 1) & (dx_B == 1)
        kernel = augment_images(image.to(device), id_B.to(device), backend="triton", **options)
        assert torch.equal(kernel[:, 0, 0, 0].cpu() == 1, white) and white.any()
        assert torch.equal(augment_images(image, id_B, **options)[:, 0, 0, 0] == 1, white)
        assert max(key(seed, epoch)) < 2**32


def test_golden_values():
    """Recorded experiments depend on these bits."""
    image_NHWC = (torch.arange(50 * 5 * 6 * 3) * 37 % 251).to(torch.uint8).view(50, 5, 6, 3)
    id_B = torch.tensor([49, 0, 7, 12, 33])
    digests = {torch.float32: "562570f0a191745c", torch.bfloat16: "ae614cea22e33472"}
    for dtype, digest in digests.items():
        out = augment(image_NHWC, id_B, flip=True, crop_padding=2, dtype=dtype, **OPTIONS)
        values = out.permute(0, 2, 3, 1)
        assert hashlib.sha256(values.view(torch.uint8).numpy().tobytes()).hexdigest()[:16] == digest
        found = values.float().reshape(5, -1)[2, [0, 40, 59, 89]].tolist()
        assert found == pytest.approx([2.0686276, 0.0392157, -0.9686274, -1.4], rel=1e-2, abs=1e-3)


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
    dy_B, dx_B, flip_B = draws(torch.tensor([0, 1, 2, 49_999, 2**40]), *key(0, 0), True, 4)
    assert (dy_B.tolist(), dx_B.tolist(), flip_B.tolist()) == PINNED


def test_draws_are_uniform_and_independent():
    n, choices = 90_000, 9
    dy_B, dx_B, flip_B = draws(torch.arange(n), *key(3, 1), True, 4)
    cells = torch.bincount((dy_B * choices + dx_B) * 2 + flip_B, minlength=2 * choices**2).double()
    expected = n / len(cells)
    chi2 = ((cells - expected) ** 2 / expected).sum()
    assert chi2 < 161 + 5 * (2 * 161) ** 0.5  # 162 cells: mean 161, five standard deviations
    assert abs(flip_B.double().mean() - 0.5) < 0.01


def test_seeds_and_epochs_never_share_draws():
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1), (2**62, 0), (-1, 0)]
    drawn = [torch.stack(draws(torch.arange(500), *key(*pair), False, 4)[:2]) for pair in pairs]
    for i, first in enumerate(drawn):
        for second in drawn[:i]:
            agreement = (first == second).double().mean()
            assert abs(agreement - 1 / 9) < 0.06


def test_flips_stay_off():
    assert not draws(torch.arange(100), *key(0, 0), False, 4)[2].any()


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


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(id_B=torch.zeros(2)), r"id: got torch.float32 \(2,\), expected torch.int64 \[B\]"),
        (dict(mean=(0.5,)), "mean, std: got 1 and 3 numbers, expected 3 each"),
        (dict(crop_padding=-1), "crop_padding: got -1, expected 0..32767"),
        (dict(dtype=torch.int32), "dtype: got torch.int32, expected floating point"),
    ],
)
def test_what_cannot_be_meant(change, message):
    options = dict(id_B=torch.arange(2), flip=True, crop_padding=1) | OPTIONS
    with pytest.raises(ValueError, match=message):
        augment(images(), **(options | change))


def test_examples_that_do_not_exist(device):
    id_B = torch.tensor([0, 2**50, -1, 39, 40])  # reading the second one would be a segmentation fault
    for options in (dict(flip=True, crop_padding=2), dict(flip=False, crop_padding=0)):
        with pytest.raises(IndexError):
            augment(images(), id_B, **options, **OPTIONS)
        planar = images().permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
        for ids in ([40], [-1]):
            for image_NHWC in (images(), planar):
                with pytest.raises(IndexError):
                    augment(image_NHWC, torch.tensor(ids), **options, **OPTIONS)
        out = augment(images().to(device), id_B.to(device), backend="triton", **options, **OPTIONS)
        assert out.isnan().all((1, 2, 3)).tolist() == [False, True, True, False, True]
        assert not out[::3].isnan().any()
    with pytest.raises(ValueError, match=r"id: got \(5,\), expected \(40,\), one per image"):
        augment_images(images(), id_B, flip=True, crop_padding=2, **OPTIONS)


def test_the_example_that_does_not_exist_is_named():
    pytest.importorskip("numba")
    for ids, named in (([3, 2**50, -1], 2**50), ([3, -1], -1), ([40], 40)):
        with pytest.raises(IndexError, match=rf"^id: got {named}, expected 0\.\.39$"):
            augment(images(), torch.tensor(ids), flip=True, crop_padding=2, **OPTIONS)


def test_offsets_beyond_32_bits(device):
    # Two images 2³¹ bytes apart; the memory between them is never touched.
    store = torch.empty(2**31 + 3 * 4, dtype=torch.uint8, device=device)
    image_NHWC = store.as_strided((2, 2, 2, 3), (2**31, 6, 3, 1))
    image_NHWC.copy_(torch.arange(24).view(2, 2, 2, 3))
    for backend in ("triton", "auto"):
        options = OPTIONS | dict(mean=(0.0,) * 3, std=(1 / 255,) * 3)
        out = augment(
            image_NHWC,
            torch.tensor([1], device=device),
            flip=False,
            crop_padding=0,
            backend=backend,
            **options,
        )
        assert out.permute(0, 2, 3, 1).flatten().tolist() == list(range(12, 24))


def test_the_operator_is_well_formed_and_compiles(device):
    image_NHWC, id_B = images(8).to(device), torch.arange(5, device=device)
    for arguments in (
        (image_NHWC, id_B, True, 1, 2, True, 1, MEAN, STD, torch.bfloat16),
        (image_NHWC, None, False, 0, 0, False, 0, MEAN, STD, torch.float32),
    ):
        torch.library.opcheck(torch.ops.rumfast.augment.default, arguments)
    compiled = torch.compile(augment, backend="eager", fullgraph=True)
    options = dict(flip=True, crop_padding=1) | OPTIONS
    assert torch.equal(compiled(image_NHWC, id_B, **options), augment(image_NHWC, id_B, **options))
