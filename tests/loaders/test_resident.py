import numpy as np
import pytest
import torch

from rumfast.data import Examples
from rumfast.errors import DataError, UsageError
from rumfast.loaders import ResidentLoader, batch_bounds
from rumfast.models import build_model

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def examples(n=23):
    image_NHWC = np.random.default_rng(0).integers(0, 256, (n, 6, 6, 3), dtype=np.uint8)
    return Examples(image_NHWC, np.arange(n, dtype=np.int64) * 10)


def loader(n=23, **options):
    return ResidentLoader(examples(n), MEAN, STD, **{"device": "cpu", "batch_size": 5, **options})


def ids_of(batches):
    return torch.cat([batch.id for batch in batches]).tolist()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_bounds_cover_everything_in_even_batches(batch_size):
    for n in range(1, 40):
        bounds = batch_bounds(n, batch_size)
        sizes = [stop - start for start, stop in bounds]
        assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])]
        assert bounds[-1][1] == n and len(bounds) == -(-n // batch_size)
        assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1 and min(sizes) >= 1
    assert batch_bounds(0, batch_size) == []


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
