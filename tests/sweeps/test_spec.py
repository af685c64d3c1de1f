import json
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from rumfast.config import TrainConfig, parse_recipe
from rumfast.data import Dataset
from rumfast.errors import UsageError
from rumfast.sweeps import DataRef, PopulationSpec
from rumfast.sweeps.run import sweep_spec


def make(**fields):
    base = {
        "kind": "subsets",
        "data": DataRef(location="digits", fingerprint="f"),
        "train": TrainConfig(),
        "precision": "torch.float32",
        "include": 0.7,
    }
    return PopulationSpec.model_validate(base | fields)


def test_a_mask_depends_on_seed_and_index_alone():
    first = make(seed=5).subset(3, 500).tolist()
    other_recipe = make(
        seed=5,
        train=TrainConfig(lr=0.3, seed=9),
        precision="torch.bfloat16",
        data=DataRef(location="x", fingerprint="g"),
    )
    assert first == other_recipe.subset(3, 500).tolist()
    subsets = [make(seed=seed).subset(index, 500).tolist() for seed in range(4) for index in range(4)]
    assert len(set(map(tuple, subsets))) == 16
    # Sums of seed and index must not collide.
    assert make(seed=0).subset(1, 500).tolist() != make(seed=1).subset(0, 500).tolist()


@pytest.mark.parametrize(
    "include, share", [(0.7, Fraction(7, 10)), (0.5, Fraction(1, 2)), (0.29, Fraction(29, 100))]
)
def test_sizes_are_the_floor_of_the_share_exactly(include, share):
    spec = make(include=include)
    for n in [*range(4, 120), 1400, 45_000, 50_000]:
        subset = spec.subset(0, n)
        assert len(subset) == int(share * n), n  # in floats 0.7 · 90 is below 63
        assert (np.diff(subset) > 0).all() and 0 <= subset[0] and subset[-1] < n


def test_every_example_and_pair_is_equally_likely():
    spec, members, n = make(seed=1), 3000, 40
    include_MN = np.zeros((members, n))
    for index in range(members):
        include_MN[index, spec.subset(index, n)] = 1
    counts = include_MN.sum(0)
    chi2 = ((counts - 0.7 * members) ** 2).sum() / (0.7 * 0.3 * members)
    assert 1e-4 < stats.chi2.cdf(chi2 * (n - 1) / n, n - 1) < 1 - 1e-4
    pairs = np.corrcoef(include_MN.T)[~np.eye(n, dtype=bool)]
    # Fixed sizes make two examples correlate by −1/(n−1).
    assert pairs.mean() == pytest.approx(-1 / (n - 1), rel=0.01) and abs(pairs).max() < 5.5 / np.sqrt(members)


def test_excluded_ids_never_appear():
    excluded = (0, 7, 49)
    spec = make(excluded=excluded, forget=(1, 2))
    assert set(spec.pool(50)) == set(range(50)) - set(excluded)
    assert set(spec.retained(50)) == set(range(50)) - {0, 1, 2, 7, 49}
    union = set()
    for index in range(60):
        subset = spec.subset(index, 50)
        assert len(subset) == int(0.7 * 47)
        union |= set(subset.tolist())
    assert union == set(spec.pool(50).tolist())


def test_member_seeds_differ_by_kind_seed_and_index():
    seeds = {
        make(kind=kind, seed=seed).member_seed(index)
        for kind in ("subsets", "original", "oracle", "unlearned")
        for seed in range(5)
        for index in range(50)
    }
    assert len(seeds) == 4 * 5 * 50


def test_specs_survive_json():
    spec = make(excluded=(3,), groups=[{"name": "low", "ids": (1, 2)}], plan="none", budget=10)
    assert PopulationSpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


def test_data_is_referred_to_by_where_it_lies_and_what_it_holds(digits):
    ref = DataRef.to(digits)
    assert (ref.location, ref.train_examples, ref.test_examples) == ("digits", 300, 100)
    assert ref.fingerprint == digits.fingerprint
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.arange(4) % 2
    with pytest.raises(UsageError, match="made in memory.*pack it"):
        DataRef.to(Dataset.from_arrays(images, labels, images, labels, ["a", "b"]))


@pytest.mark.parametrize("include", [0.0, 1.0, 1.5, -0.1, float("nan")])
def test_shares_outside_0_and_1(digits, include):
    with pytest.raises(UsageError, match="include: got .*, expected a share between 0 and 1"):
        sweep_spec(digits, TrainConfig(), include=include)


def test_independent_subsets_include_each_example_by_itself():
    spec, members, n = make(design="independent", include=0.3, seed=2), 2000, 30
    include_MN = np.zeros((members, n))
    for index in range(members):
        include_MN[index, spec.subset(index, n)] = 1
    sizes = include_MN.sum(1)
    assert sizes.mean() == pytest.approx(9, abs=0.3) and sizes.var() == pytest.approx(
        30 * 0.3 * 0.7, rel=0.15
    )
    pairs = np.corrcoef(include_MN.T)[~np.eye(n, dtype=bool)]
    assert abs(pairs.mean()) < 5e-3  # of fixed sizes it is −1 / (n − 1)


def test_pairs_are_complementary_halves_of_the_pool():
    spec = make(design="pairs", include=0.5, excluded=(0, 7), seed=4)
    for index in range(0, 10, 2):
        first, second = (spec.subset(which, 21).tolist() for which in (index, index + 1))
        assert sorted(first + second) == spec.pool(21).tolist() and (len(first), len(second)) == (9, 10)
    assert spec.subset(0, 21).tolist() != spec.subset(2, 21).tolist()


def test_pairs_must_be_halves(digits, recipe):
    with pytest.raises(UsageError, match="pairs are complementary halves, so include must be 0.5, got 0.7"):
        sweep_spec(digits, recipe, design="pairs", device="cpu")
    with pytest.raises(ValueError, match="complementary halves"):
        make(design="pairs")
    with pytest.raises(UsageError, match="sweep: Value error, design: pairs"):
        parse_recipe('plans=[{name="a",steps="none"}]\ndata={path="x"}\nforget={request="class:1"}\n'
                     '[sweep]\ndesign="pairs"', "r.toml")  # fmt: skip
