import numpy as np
import pytest

from rumfast import refine
from rumfast.errors import DataError
from rumfast.refinement import filled, refine_at_random, refine_by_class, shortage


def ids_of(groups):
    return [group.ids.tolist() for group in groups]


def some(size=100, n=400, seed=0):
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(n, size, replace=False)), rng.random(n)


@pytest.mark.parametrize(
    "size, groups, sizes",
    [
        (9, 3, [3, 3, 3]),
        (10, 3, [4, 3, 3]),
        (11, 3, [4, 4, 3]),
        (3, 3, [1, 1, 1]),
        (7, 2, [4, 3]),
        (7, 1, [7]),
        (9, 4, [3, 2, 2, 2]),
    ],
)
def test_sizes_are_exact_and_the_larger_come_first(size, groups, sizes):
    forget, score_N = some(size)
    for parts in (refine(forget, score_N, groups), refine_at_random(forget, groups, seed=0)):
        assert [len(part.ids) for part in parts] == sizes


@pytest.mark.parametrize(
    "groups, names",
    [(1, ["all"]), (2, ["low", "high"]), (3, ["low", "mid", "high"]), (4, ["g1", "g2", "g3", "g4"])],
)
def test_names(groups, names):
    assert [group.name for group in refine(*some(), groups)] == names


@pytest.mark.parametrize("groups", [1, 2, 3, 7, 100])
def test_groups_partition_the_forget_set_in_order_of_score(groups):
    forget, score_N = some()
    parts = refine(forget, score_N, groups)
    assert sorted(np.concatenate([part.ids for part in parts])) == forget.tolist()
    assert all(np.array_equal(part.ids, np.sort(part.ids)) for part in parts)
    for lower, higher in zip(parts, parts[1:], strict=False):
        assert score_N[lower.ids].max() <= score_N[higher.ids].min()


def test_ties_are_cut_by_id_whatever_the_order_of_the_forget_set():
    score_N = np.array([0.5, 0.5, 0.9, 0.5, 0.1, 0.5])
    forget = np.array([5, 2, 0, 4, 3, 1])
    assert (
        ids_of(refine(forget, score_N, 3))
        == ids_of(refine(np.sort(forget), score_N, 3))
        == [[0, 4], [1, 3], [2, 5]]
    )


def test_scores_of_other_examples_do_not_matter():
    forget, score_N = some()
    others = np.setdiff1d(np.arange(400), forget)
    changed = score_N.copy()
    changed[others] = np.nan
    assert ids_of(refine(forget, changed)) == ids_of(refine(forget, score_N))


def test_an_example_without_a_score_is_named():
    forget, score_N = some(5)
    score_N[forget[[1, 3]]] = np.nan
    with pytest.raises(
        DataError, match=rf"2 of 5 forgotten examples have no score \(first: id {forget[1]}\)"
    ):
        refine(forget, score_N, 2)


def test_random_groups_depend_on_the_seed_and_the_set_alone():
    forget, _ = some()
    first = ids_of(refine_at_random(forget, 3, seed=4))
    assert (
        first
        == ids_of(refine_at_random(forget[::-1].copy(), 3, seed=4))
        != ids_of(refine_at_random(forget, 3, 5))
    )
    assert sorted(sum(first, [])) == forget.tolist()


def test_random_groups_ignore_the_order_of_ids():
    # Were the set cut in order, low ids would always be in the first group.
    counts = np.zeros(30)
    for seed in range(400):
        counts[refine_at_random(np.arange(30), 3, seed)[0].ids] += 1
    assert np.abs(counts / 400 - 1 / 3).max() < 5 * np.sqrt(2 / 9 / 400)


def test_classes():
    label_N = np.array([3, 0, 3, 1, 0, 3])
    groups = refine_by_class(np.array([5, 0, 1, 2]), label_N)
    assert [group.name for group in groups] == ["class-0", "class-3"] and ids_of(groups) == [[1], [0, 2, 5]]


def test_thirds_of_3000_are_1000_each_whatever_the_ids_and_scores():
    rng = np.random.default_rng(3)
    forget, score_N = rng.choice(45000, 3000, replace=False), rng.random(45000).round(1)  # many ties
    for parts in (refine(forget, score_N), refine_at_random(forget, 3, seed=1)):
        assert [len(part.ids) for part in parts] == [1000, 1000, 1000]
        assert np.array_equal(np.sort(np.concatenate([part.ids for part in parts])), np.sort(forget))
        assert all(part.ids.dtype == np.int64 for part in parts)


def test_equal_scores_fall_into_groups_by_id_and_one_group_per_example_is_a_ranking():
    forget = np.array([8, 3, 5, 1])
    assert ids_of(refine(forget, np.zeros(9), 2)) == [[1, 3], [5, 8]]
    assert ids_of(refine(forget, np.arange(9.0)[::-1], 4)) == [[8], [5], [3], [1]]
    infinite = np.full(9, np.inf)
    infinite[3] = -np.inf
    assert ids_of(refine(forget, infinite, 2)) == [[1, 3], [5, 8]]


def test_refining_changes_neither_ids_nor_scores_nor_labels():
    forget, score_N, label_N = np.array([8, 3, 5, 1]), np.arange(9.0), np.arange(9) % 2
    before = [array.copy() for array in (forget, score_N, label_N)]
    for parts in (
        refine(forget, score_N, 2),
        refine_at_random(forget, 2, seed=0),
        refine_by_class(forget, label_N),
    ):
        for part in parts:
            part.ids[:] = -1
    for array, copy in zip((forget, score_N, label_N), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize(
    ("forget", "message"),
    [
        ([0, 9], "refine: found id 9, expected ids within 0..8"),
        ([-1, 2], "refine: found id -1"),
        ([2, 3, 2], "refine: found id 2 more than once"),
        ([0.0, 1.0], "refine: found dtype float64"),
    ],
)
def test_ids_that_are_no_rows_are_refused(forget, message):
    for group in (
        lambda ids: refine(ids, np.zeros(9), 2),
        lambda ids: refine_by_class(ids, np.zeros(9, int)),
    ):
        with pytest.raises(DataError, match=message):
            group(np.array(forget))


def test_twenty_classes_are_groups_by_number():
    groups = refine_by_class(np.arange(40), np.arange(40) % 20)
    assert [group.name for group in groups][8:12] == ["class-8", "class-9", "class-10", "class-11"]
    assert all(group.ids.tolist() == [index, index + 20] for index, group in enumerate(groups))


@pytest.mark.parametrize(
    "size, groups, low_to_high",
    [
        (1, 3, {"low": [], "mid": [], "high": [6]}),
        (2, 3, {"low": [], "mid": [7], "high": [6]}),
        (3, 3, {"low": [8], "mid": [7], "high": [6]}),
        (1, 2, {"low": [], "high": [6]}),
        (2, 4, {"g1": [], "g2": [], "g3": [7], "g4": [6]}),
        (1, 1, {"all": [6]}),
    ],
)
def test_of_few_examples_each_is_a_group_and_the_first_groups_are_empty(size, groups, low_to_high):
    forget, score_N = np.array([6, 7, 8][:size]), np.arange(9.0)[::-1]
    made = refine(forget, score_N, groups)
    assert {group.name: group.ids.tolist() for group in made} == low_to_high
    at_random = refine_at_random(forget, groups, seed=0)
    assert [(group.name, len(group.ids)) for group in at_random] == [(g.name, len(g.ids)) for g in made]
    assert all(group.ids.dtype == np.int64 for group in (*made, *at_random))
    empty = sum(not ids for ids in low_to_high.values())
    assert filled(made) == made[empty:] and (shortage(size, groups) is None) == (not empty)


def test_the_notice_names_the_empty_groups():
    assert shortage(3, 5) == (
        "3 examples make 3 groups of the 5 asked for: g1 and g2 are empty, and plans skip the steps for them"
    )
    assert shortage(2, 3) == (
        "2 examples make 2 groups of the 3 asked for: low is empty, and plans skip the step for it"
    )
    assert "asked for: g1, g2 and g3 are" in shortage(1, 4)


@pytest.mark.parametrize("size, groups", [(0, 1), (0, 3), (5, 0), (5, -1)])
def test_nothing_to_refine(size, groups):
    forget = np.arange(size)
    message = f"refine: found {size} examples for {groups} groups, expected at least one of each"
    with pytest.raises(DataError, match=message):
        refine(forget, np.zeros(9), groups)
    with pytest.raises(DataError, match=message):
        refine_at_random(forget, groups, seed=0)
    with pytest.raises(DataError, match="found 0 examples"):
        refine_by_class(np.arange(0), np.zeros(9, int))
