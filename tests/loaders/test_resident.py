import numpy as np
import pytest
import torch

from rumfast.data import Examples
from rumfast.errors import DataError, UsageError
from rumfast.loaders import ResidentLoader, batch_bounds, batch_count
from rumfast.models import build_model

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def examples(n=23):
    image_NHWC = np.random.default_rng(0).integers(0, 256, (n, 6, 6, 3), dtype=np.uint8)
    return Examples(image_NHWC, np.arange(n, dtype=np.int64) * 10)


def loader(n=23, **options):
    return ResidentLoader(examples(n), MEAN, STD, **{"device": "cpu", "batch_size": 5, **options})


def ids_of(batches):
    return torch.cat([batch.id for batch in batches]).tolist()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 20, 64, 100])
def test_bounds_cover_everything_in_even_batches(batch_size):
    for n in range(1, 400):
        bounds = batch_bounds(n, batch_size)
        sizes = [stop - start for start, stop in bounds]
        assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])]
        assert bounds[-1][1] == n and len(bounds) == batch_count(n, batch_size)
        assert max(sizes) <= 1.05 * batch_size and max(sizes) - min(sizes) <= 1 and min(sizes) >= 1
        assert max(sizes) == min(sizes) or len(bounds) == -(-n // batch_size)
    assert batch_bounds(0, batch_size) == []


@pytest.mark.parametrize("batch_size", [19, 20, 64, 100, 256])
def test_batches_are_of_one_size_wherever_one_nearby_divides(batch_size):
    for n in range(1, 3000):
        divisors = (size for size in range(1, n + 1) if n % size == 0)
        near = [size for size in divisors if abs(size - batch_size) <= batch_size / 20]
        sizes = {stop - start for start, stop in batch_bounds(n, batch_size)}
        if near:
            assert len(sizes) == 1
        if near and n % -(-n // batch_size):
            assert abs(sizes.pop() - batch_size) == min(abs(size - batch_size) for size in near)


def test_sizes_of_batches_by_hand():
    assert [batch_count(n, 256) for n in (31_500, 45_000, 35_000)] == [125, 180, 140]  # of 252, 250, 250
    assert {stop - start for start, stop in batch_bounds(31_489, 256)} == {253, 254}  # a prime number


@pytest.mark.parametrize("n, batch_size", [(1, 5), (6, 5), (23, 5), (5, 5), (3, 100)])
def test_each_example_once_with_its_own_label_and_pixels(n, batch_size):
    batches = list(loader(n, batch_size=batch_size).epoch(epoch=3))
    assert sorted(ids_of(batches)) == list(range(n))
    raw_NHWC = torch.from_numpy(examples(n).image_NHWC).double() / 255
    for batch in batches:
        assert batch.image.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch.label, batch.id * 10)
        pixels = batch.image.double() * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
        torch.testing.assert_close(pixels.permute(0, 2, 3, 1), raw_NHWC[batch.id], atol=1e-6, rtol=1e-6)


def test_order_follows_seed_and_epoch_without_collisions():
    one = loader()
    orders = [ids_of(one.epoch(epoch=epoch, seed=seed)) for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    assert ids_of(one.epoch(epoch=2, seed=1)) == orders[5]
    assert ids_of(loader(seed=1).epoch(epoch=2)) == orders[5]
    assert ids_of(one.epoch([7, 3, 9], shuffle=False)) == [7, 3, 9]


def test_epochs_are_epoch_after_epoch_of_ids_checked_once():
    one, subset = loader(flip=True, crop_padding=2), np.array([20, 1, 8, 13, 2, 0])
    passes = one.epochs(subset, seed=4)
    for epoch in range(3):
        for found, expected in zip(next(passes), one.epoch(subset, epoch, seed=4), strict=True):
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    with pytest.raises(DataError, match="^ids: found"):
        one.epochs([0, 0])


@pytest.mark.parametrize("at_once", [2, 3, 100])
def test_batches_that_are_augmented_together_are_the_same(at_once):
    one, together = (loader(flip=True, crop_padding=2) for _ in range(2))
    together._at_once = at_once
    for found, expected in zip(together.epoch(epoch=1), one.epoch(epoch=1), strict=True):
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
        assert found.image.stride() == expected.image.stride()


def test_one_resident_set_serves_many_subsets():
    one = loader(flip=True, crop_padding=2)
    subset = np.array([20, 1, 8, 13, 2, 0])
    batches = list(one.epoch(subset, epoch=1, seed=4))
    assert sorted(ids_of(batches)) == sorted(subset.tolist())
    whole = {
        int(i): image
        for batch in one.epoch(epoch=1, seed=4)
        for i, image in zip(batch.id, batch.image, strict=True)
    }
    for batch in batches:
        for i, image in zip(batch.id, batch.image, strict=True):
            assert torch.equal(image, whole[int(i)])


def test_pixels_of_an_example_do_not_depend_on_the_batch_size():
    drawn = []
    for batch_size in (1, 4, 23):
        batches = list(loader(flip=True, crop_padding=2, batch_size=batch_size).epoch(shuffle=False))
        drawn.append(torch.cat([batch.image for batch in batches]))
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])


def test_a_bf16_step_is_the_same_on_bf16_batches():
    """The first convolution rounds float32 images as the loader does."""
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        model = build_model("resnet8", 10, width=4, seed=0).train()
        for batch in loader(flip=True, crop_padding=2, dtype=dtype).epoch():
            assert batch.image.dtype == dtype
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(batch.image)
            torch.nn.functional.cross_entropy(logits.float(), batch.id % 10).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert torch.equal(*gradients) and gradients[0].abs().max() > 0


@pytest.mark.parametrize("ids", [[], [1, 1], [23], [-1], [0.5], np.ones(23, bool), [[1]]])
def test_bad_ids_are_refused_before_the_first_batch(ids):
    with pytest.raises(DataError, match="^ids: found"):
        loader().epoch(ids)


@pytest.mark.parametrize("options", [dict(batch_size=0), dict(batch_size=2.5), dict(crop_padding=-1)])
def test_bad_options(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        loader(**options)
