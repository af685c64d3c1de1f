import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rumfast.kernels import moments as module
from rumfast.kernels.moments import merge, meta, moments, reference_moments, strips_of

BACKENDS = ["triton", "auto", "torch"]


def points(n=101, width=7, groups=4, offset=0.0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(n)
    x = torch.randn(n, width, generator=draw, dtype=torch.float64) + offset
    return x.to(dtype), torch.randint(groups, (n,), generator=draw)


def truth(x, group, groups):
    """Group by group in float64: count, mean and scatter."""
    x, found = x.double().numpy(), []
    for g in range(groups):
        mine = x[group.numpy() == g]
        mean = mine.mean(0) if len(mine) else np.zeros(x.shape[1])
        found.append((len(mine), mean, ((mine - mean) ** 2).sum()))
    return [torch.from_numpy(np.array(column)) for column in zip(*found, strict=True)]


def check(found, expected, rtol, spread=1.0):
    """Scatter within ``rtol``, means within 4·``rtol`` of the spread, however far from the origin."""
    assert torch.equal(found.count_G.cpu(), expected[0])
    assert found.mean_GD.dtype == found.scatter_G.dtype == torch.float64
    torch.testing.assert_close(found.mean_GD.cpu(), expected[1], rtol=1e-15, atol=4 * rtol * spread)
    torch.testing.assert_close(found.scatter_G.cpu(), expected[2], rtol=rtol, atol=0.0)


CASES = {
    "one group, a lone point in the last tile": dict(n=129, width=65, groups=1),
    "one point": dict(n=1, width=3, groups=1),
    "one coordinate, tiles of 512": dict(n=1025, width=1, groups=2),
    "two column blocks, ragged": dict(n=300, width=133, groups=4),
    "more groups than points": dict(n=5, width=2, groups=9),
    "far from the origin": dict(n=200, width=5, groups=2, offset=1e4),
    "float64": dict(n=150, width=70, groups=2, offset=1e4, dtype=torch.float64),
    "bfloat16": dict(n=90, width=6, groups=2, dtype=torch.bfloat16),
    "float16, huge": dict(n=64, width=4, groups=2, offset=6e4, dtype=torch.float16),
}


@pytest.mark.parametrize("backend", ["triton", "auto"])
@pytest.mark.parametrize("name", CASES)
def test_against_float64_group_by_group(name, backend, device):
    x, group = points(**CASES[name])
    groups = CASES[name].get("groups", 4)
    place = device if backend == "triton" else "cpu"
    found = moments(x.to(place), group.to(place), groups, backend=backend)
    check(found, truth(x, group, groups), rtol=1e-12 if x.dtype == torch.float64 else 3e-7)


def test_the_reference_agrees():
    x, group = points(n=60, groups=3)
    check(reference_moments(x.double(), group, 3), truth(x, group, 3), rtol=1e-13)
    check(moments(x, group, 3, backend="torch"), truth(x, group, 3), rtol=1e-6)


def test_strips_merge_in_several_blocks(device):
    # 97 strips of 128 points, of which 64 are merged at a time.
    assert meta(65, torch.float32)["BLOCK_N"] == 128 and strips_of(97 * 128 - 5, 1, 2, 128) == 97
    x, _ = points(n=97 * 128 - 5, width=1, offset=30.0)
    found = moments(x.to(device).expand(-1, 65), backend="triton")
    check(found, truth(x.expand(-1, 65), torch.zeros(len(x)), 1), rtol=3e-7)


@pytest.mark.parametrize("groups", [1, 3])
def test_strips_of_several_blocks(groups, device, monkeypatch):
    monkeypatch.setattr(module, "PROGRAMS", 4)
    x, group = points(n=9 * 128 + 7, width=65, groups=groups, offset=30.0)
    assert strips_of(len(x), groups, 2, 128) == 4
    found = moments(x.to(device), None if groups == 1 else group.to(device), groups, backend="triton")
    check(found, truth(x, group, groups), rtol=3e-7)
    again = moments(x.to(device), None if groups == 1 else group.to(device), groups, backend="triton")
    assert all(torch.equal(*pair) for pair in zip(found, again, strict=True))


def test_strips_fill_a_gpu_and_never_outnumber_the_blocks_of_points():
    assert strips_of(45_000, groups=1, columns=8, block_n=128) * 8 == 512
    assert strips_of(45_000, groups=40, columns=8, block_n=128) == 6
    assert strips_of(45_000, groups=10_000, columns=8, block_n=128) == 4
    assert strips_of(129, 1, 1, 128) == 2 and strips_of(0, 1, 1, 128) == 1


class Operations(TorchDispatchMode):
    """Notes which of torch's operations are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


class Noted:
    """In place of a Triton kernel: notes its launches."""

    def __init__(self, launches):
        self.launches = launches

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.launches.append(grid)


@pytest.mark.parametrize("grouped", [False, True])
def test_two_launches_and_no_operation_but_allocations_without_groups(grouped, device, monkeypatch):
    launches = []
    for name in ("_strips_kernel", "_merge_kernel"):
        monkeypatch.setattr(module, name, Noted(launches))
    x, group = (tensor.to(device) for tensor in points(n=1000, width=70))
    with Operations() as called:
        module._launch(x, group if grouped else None, 4 if grouped else 1)
    assert len(launches) == 2
    host = ("new_empty", "promote_types")  # an allocation, and one of dtypes
    others = [name for name in called.names if name not in host]
    assert others == (["sort", "arange", "searchsorted"] if grouped else [])


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_nan(backend, device):
    x = torch.tensor([[1.0, torch.nan], [3.0, 4.0]], device=device)
    found = moments(x, backend=backend)
    assert found.mean_GD.isnan().tolist() == [[False, True]] and found.scatter_G.isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_hand_worked_with_an_empty_group_and_a_lone_point(backend, device):
    x = torch.tensor([[1.0, 0.0], [3.0, 4.0], [7.0, 7.0]], device=device)
    found = moments(x, torch.tensor([2, 2, 0], device=device), 3, backend=backend)
    assert found.count_G.tolist() == [1, 0, 2]
    assert found.mean_GD.tolist() == [[7.0, 7.0], [0.0, 0.0], [2.0, 2.0]]
    assert found.scatter_G.tolist() == pytest.approx([0.0, 0.0, 10.0], rel=1e-7)
    alone = moments(x, backend=backend)
    assert alone.count_G.tolist() == [3] and alone.scatter_G.item() == pytest.approx(130 / 3, rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_points_do_not_scatter_and_no_points_are_none(backend, device):
    if backend != "torch":  # two passes round the mean, and then each offset from it
        equal = torch.full((700, 3), 16777217.0, dtype=torch.float64).float().to(device)
        found = moments(equal, backend=backend)
        assert found.mean_GD.tolist() == equal[:1].tolist() and found.scatter_G.item() == 0.0
    for empty, group in ((torch.zeros(0, 3), None), (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))):
        found = moments(empty.to(device), group if group is None else group.to(device), 1, backend=backend)
        assert found.count_G.tolist() == [0] and found.scatter_G.tolist() == [0.0]
        assert found.mean_GD.tolist() == [[0.0] * 3]
    assert moments(torch.zeros(4, 0, device=device), backend=backend).scatter_G.tolist() == [0.0]


@pytest.mark.parametrize("backend", ["triton", "auto"])
def test_an_outlier_first(backend, device):
    x, group = points(n=400, width=1, groups=1)
    x[0] = 300.0
    check(
        moments(x.to(device), group.to(device), 1, backend=backend),
        truth(x, group, 1),
        rtol=3e-7,
        spread=30.0,
    )


@pytest.mark.parametrize("backend", ["triton", "auto"])
def test_layouts_and_order_do_not_matter(backend, device):
    x, group = (tensor.to(device) for tensor in points(n=257, width=9, groups=3))
    expected = truth(x.cpu(), group.cpu(), 3)
    strided = torch.stack([x, -x], 2).transpose(0, 1)[..., 0].t()
    assert not strided.is_contiguous()
    check(moments(strided, group.repeat_interleave(2)[::2], 3, backend=backend), expected, 3e-7)
    order = group.argsort(stable=True)
    in_order = moments(x[order], group[order], 3, backend=backend)
    for ours, theirs in zip(in_order, moments(x, group, 3, backend=backend), strict=True):
        assert torch.equal(ours, theirs)
    copies = moments(x[:1].expand(5, -1), group[:1].expand(5), 3, backend=backend)
    assert copies.count_G[group[0]] == 5 and copies.scatter_G.max() == 0


def test_blocks_on_the_cpu_are_ragged():
    x, group = points(n=2000, width=517, groups=2, offset=3.0)  # blocks of 507 points
    check(moments(x, group, 2), truth(x, group, 2), rtol=1e-7)
    check(moments(x), truth(x, torch.zeros(2000), 1), rtol=1e-7)


def test_triton_leaves_out_points_of_unknown_groups(device):
    x, group = points(n=50, groups=3)
    strange = group.clone()
    strange[::7], strange[1::7] = -1, 3
    found = moments(x.to(device), strange.to(device), 3, backend="triton")
    known = (strange >= 0) & (strange < 3)
    check(found, truth(x[known], group[known], 3), rtol=3e-7)


@pytest.mark.parametrize("sizes", [(90,), (1, 89), (0, 44, 46)])
def test_merging_parts_equals_the_whole(sizes):
    x, group = points(n=90, groups=3, offset=1e3, dtype=torch.float64)
    parts = [moments(*part, 3) for part in zip(x.split(sizes), group.split(sizes), strict=True)]
    check(merge(*parts), truth(x, group, 3), rtol=1e-12)
    check(merge(*reversed(parts)), truth(x, group, 3), rtol=1e-12)


def test_merging_what_does_not_match():
    one, other = moments(torch.zeros(2, 3)), moments(torch.zeros(2, 4))
    for parts in ((), (one, other)):
        with pytest.raises(ValueError, match="merge: moments of one number of groups and one width expected"):
            merge(*parts)


def test_mean_pairwise_distance_follows_from_the_scatter():
    # mean_{i,j} ‖x_i − x_j‖² = 2·(mean‖x‖² − ‖μ‖²) = 2·scatter / n
    x, _ = points(n=40, dtype=torch.float64)
    pairs = ((x[:, None] - x[None]) ** 2).sum(-1).mean()
    assert 2 * moments(x).scatter_G.item() / 40 == pytest.approx(pairs.item(), rel=1e-12)


def test_the_operator_is_well_formed_and_compiles(device):
    x, group = (tensor.to(device) for tensor in points(n=40, groups=3))
    for arguments in ((x, group, 3), (x.bfloat16(), None, 1), (x.double().t(), None, 1)):
        torch.library.opcheck(torch.ops.rumfast.moments.default, arguments)
    compiled = torch.compile(moments, backend="eager", fullgraph=True)
    for ours, theirs in zip(compiled(x, group, 3), moments(x, group, 3), strict=True):
        assert torch.equal(ours, theirs)


def test_offsets_beyond_32_bits(device):
    # Two points 2³² bytes apart; the memory between them is never touched.
    store = torch.empty(2**31 + 3, dtype=torch.bfloat16, device=device)
    x = store.as_strided((2, 3), (2**31, 1))
    x.copy_(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]))
    for backend in ("triton", "auto"):
        found = moments(x, backend=backend)
        assert found.mean_GD.tolist() == [[2.0, 2.0, 2.0]]
        assert found.scatter_G.item() == pytest.approx(4.0, rel=1e-6)


@pytest.mark.parametrize(
    "shape, group, groups, backend, message",
    [
        ((3, 2), [0, 0], 2, "auto", r"embedding \[N, D\] and group \[N\] expected, got \(3, 2\) and \(2,\)"),
        ((3, 2), [0, -1, 1], 2, "torch", "groups span -1..1, expected 0..1"),
        ((3, 2), [0, 2, 1], 2, "auto", "groups span 0..2, expected 0..1"),
        ((3, 2), [0.0, 1.0, 1.0], 2, "auto", "int64 group expected, got torch.float32 and torch.float32"),
        ((3, 2), None, 2, "auto", "groups: got 2, expected 1, or more together with the group of each point"),
    ],
)
def test_what_cannot_be_meant(shape, group, groups, backend, message):
    with pytest.raises(ValueError, match=message):
        moments(torch.zeros(shape), group if group is None else torch.tensor(group), groups, backend=backend)
