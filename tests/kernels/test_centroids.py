import pytest
import torch

from rumfast.kernels.centroids import centroid_distances


def points(n, width, groups, offset=0.0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(n)
    x = torch.randn(n, width, generator=draw, dtype=torch.float64) + offset
    mean = torch.randn(groups, width, generator=draw, dtype=torch.float64) + offset
    return x.to(dtype), mean, torch.randint(groups, (n,), generator=draw)


CASES = {
    "one column block": (dict(n=101, width=7, groups=1), 1e-6),
    "ragged column blocks": (dict(n=70, width=130, groups=3), 1e-6),
    "one point": (dict(n=1, width=1, groups=2), 1e-6),
    "float64": (dict(n=300, width=9, groups=2, offset=1e4, dtype=torch.float64), 1e-13),
    "bfloat16": (dict(n=50, width=20, groups=2, dtype=torch.bfloat16), 1e-6),
    "far from the origin, to float32 of the mean": (dict(n=40, width=6, groups=2, offset=100.0), 3e-5),
    "none": (dict(n=0, width=3, groups=1), 0.0),
}


@pytest.mark.parametrize("backend", ["triton", "auto", "torch"])
@pytest.mark.parametrize("name", CASES)
def test_against_float64(name, backend, device):
    options, rtol = CASES[name]
    x, mean, group = points(**options)
    expected = (x.double() - mean[group]).norm(dim=1)
    place = device if backend == "triton" else "cpu"
    found = centroid_distances(x.to(place), mean.to(place), group.to(place), backend=backend)
    assert found.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=rtol, atol=rtol)
    if options["groups"] == 1:
        alone = centroid_distances(x.to(place), mean.to(place), backend=backend)
        torch.testing.assert_close(alone.cpu(), found.cpu(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", ["triton", "auto"])
def test_strides_and_blocks(backend, device):
    x, mean, group = (tensor.to(device) for tensor in points(1100, 2, 5))
    expected = centroid_distances(x, mean, group, backend="torch")
    strided = torch.stack([x, -x], 2).transpose(0, 1)[..., 0].t()
    found = centroid_distances(
        strided, mean.t().contiguous().t(), group.repeat_interleave(2)[::2], backend=backend
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    wide = x.repeat(1, 300)  # blocks of 436 points on a CPU
    found = centroid_distances(wide, mean.repeat(1, 300), group, backend=backend)
    torch.testing.assert_close(found, expected * 300**0.5, rtol=1e-6, atol=1e-6)


def test_unknown_groups_are_nan_on_the_device_and_refused_on_the_cpu(device):
    x, mean, _ = (tensor.to(device) for tensor in points(4, 3, 2))
    group = torch.tensor([0, 2, -1, 1], device=device)
    found = centroid_distances(x, mean, group, backend="triton")
    assert found.isnan().tolist() == [False, True, True, False]
    for backend in ("auto", "torch"):
        with pytest.raises(ValueError, match="groups span -1..2, expected 0..1"):
            centroid_distances(x.cpu(), mean.cpu(), group.cpu(), backend=backend)


def test_the_operator_is_well_formed(device):
    x, mean, group = (tensor.to(device) for tensor in points(10, 3, 2))
    for arguments in ((x, mean, group), (x.bfloat16(), mean[:1], None), (x.double(), mean, group)):
        torch.library.opcheck(torch.ops.rumfast.centroid_distances.default, arguments)


def test_what_cannot_be_meant():
    with pytest.raises(ValueError, match=r"mean: got \(2, 4\), expected \[G, 3\]"):
        centroid_distances(torch.zeros(5, 3), torch.zeros(2, 4), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="groups: got 2, expected 1"):
        centroid_distances(torch.zeros(5, 3), torch.zeros(2, 3))
