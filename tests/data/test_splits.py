import numpy as np
import pytest
import torch

from rumfast.data import Split, check_ids, ids_digest, select_forget
from rumfast.errors import DataError, RumfastError, UsageError

LABELS = np.arange(20) % 4
DIGEST_OF_1_3 = "8e8f6841378f772c40db2f07e876776d50c481ed7329ebcab75312e3b1fa7807"

BAD_IDS = {
    "empty": ([], "found no ids"),
    "whole": (range(10), "found all 10 training ids"),
    "twice": ([1, 2, 1], "found id 1 more than once"),
    "out of range": ([3, 10], "found id 10, expected ids within 0..9"),
    "huge": (np.array([2**64 - 1], np.uint64), "found id 18446744073709551615"),
    "negative": ([3, -1], "found id -1, expected ids within 0..9"),
    "mask": (np.arange(10) > 4, "found dtype bool"),
    "float": ([1.0, 2.0], "found dtype float64"),
    "NaN": ([np.nan], "found dtype float64"),
    "text": (["1"], "expected integer example ids"),
    "2-d": ([[1, 2]], "found shape (1, 2)"),
    "one number": (3, "found shape ()"),
}


@pytest.mark.parametrize("name", BAD_IDS)
def test_bad_forget_sets_are_one_line_that_names_the_finding(name):
    ids, message = BAD_IDS[name]
    with pytest.raises(DataError) as error:
        Split.from_ids(ids, 10)
    assert message in str(error.value) and str(error.value).startswith("forget set: ")
    assert "\n" not in str(error.value)


def test_from_ids_sorts_and_partitions():
    split = Split.from_ids(np.array([7, 2], np.uint8), 9)
    assert split.forget.tolist() == [2, 7] and split.retain.tolist() == [0, 1, 3, 4, 5, 6, 8]
    assert split.forget.dtype == split.retain.dtype == np.int64


def test_improper_splits_on_request():
    nothing, everything = Split.from_ids([], 5, require_proper=False), Split.from_ids(range(5), 5, False)
    assert nothing.retain.tolist() == everything.forget.tolist() == [0, 1, 2, 3, 4]
    assert len(nothing.forget) == len(everything.retain) == 0


def test_check_ids_keeps_the_order_and_takes_tensors():
    assert check_ids(torch.tensor([5, 1, 3]), 6).tolist() == [5, 1, 3]
    with pytest.raises(DataError, match="^retain: found no ids"):
        check_ids([], 6, "retain")


def test_levels_hand_worked():
    score_N = [0.9, 0.1, 0.5, 0.4, 0.9, 0.0, np.nan, 0.6]
    assert Split.from_scores(score_N, 1, "high").forget.tolist() == [0]  # tie of 0 and 4: the lower id
    assert Split.from_scores(score_N, 2, "low").forget.tolist() == [1, 5]
    assert Split.from_scores(score_N, 3, "mid").forget.tolist() == [2, 3, 7]
    assert Split.from_scores(score_N, 6, "mixed").forget.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("size, thirds", [(30, (10, 10, 10)), (31, (11, 10, 10)), (32, (11, 11, 10))])
def test_mixed_has_exact_thirds_remainder_first(size, thirds):
    score_N = np.random.default_rng(0).permutation(200) / 199
    forget = Split.from_scores(score_N, size, "mixed").forget
    low, mid, high = (
        Split.from_scores(score_N, n, level).forget
        for n, level in zip(thirds, ("low", "mid", "high"), strict=True)
    )
    assert sorted(forget) == sorted([*low, *mid, *high])


def test_mixed_thirds_are_disjoint_even_when_they_compete():
    score_N = np.array([0.5, 0.5, 0.5, 0.5, 0.2])
    assert Split.from_scores(score_N, 4, "mixed").forget.tolist() == [0, 1, 2, 4]
    assert len(Split.from_scores(np.full(10, 0.5), 9, "mixed").forget) == 9


def test_unscored_examples_are_never_chosen():
    score_N = np.full(10, np.nan)
    score_N[[2, 5]] = 0.3
    for level in ("low", "mid", "high", "mixed"):
        assert Split.from_scores(score_N, 2, level).forget.tolist() == [2, 5]
        with pytest.raises(UsageError, match=r"found 3, expected 1..2, the number of examples with a score"):
            Split.from_scores(score_N, 3, level)


def test_requests(tmp_path):
    ids = {"txt": tmp_path / "ids.txt", "npy": tmp_path / "ids.npy", "npz": tmp_path / "a:b.npz"}
    ids["txt"].write_text("3\n\n 11 \n")
    np.save(ids["npy"], np.array([11, 3]))
    np.savez(ids["npz"], ids=np.array([3, 11]))
    for path in ids.values():
        assert select_forget(f"ids:{path}", LABELS).forget.tolist() == [3, 11]
    assert select_forget("class:3", LABELS).forget.tolist() == [3, 7, 11, 15, 19]
    assert select_forget("mislabeled", LABELS, flipped=np.array([4, 2])).forget.tolist() == [2, 4]
    scores = np.arange(20) / 19
    assert select_forget("memorization:high:2", LABELS, scores=scores).forget.tolist() == [18, 19]


def test_random_requests_depend_on_the_seed_alone():
    chosen = [select_forget("random:5", LABELS, seed=seed).forget.tolist() for seed in (0, 0, 1, 2)]
    assert chosen[0] == chosen[1] and chosen[0] != chosen[2] != chosen[3]
    assert len(set(chosen[0])) == 5


BAD_REQUESTS = [
    "",
    "nonsense",
    "class",
    "class:",
    "class:-1",
    "class:three",
    "random:1.5",
    "random:0",
    "random:21",
    "random:5:6",
    "memorization:5",
    "memorization:high",
    "memorization:top:5",
    "memorization:high:x",
    "memorization:high:0",
    "memorization:high:21",
    "ids",
    "ids:",
    "entanglement:high",
    "mislabeled:3",
]


@pytest.mark.parametrize("request_", BAD_REQUESTS)
def test_requests_that_cannot_be_read(request_):
    with pytest.raises(UsageError) as error:
        select_forget(request_, LABELS, scores=np.linspace(0, 1, 20))
    assert "expected" in str(error.value) and "\n" not in str(error.value)


def test_entanglement_requests_take_the_window_at_their_level():
    asked = []

    def window_of(level, size):
        asked.append((level, size))
        return np.array([7, 2, 11])[:size]

    split = select_forget("entanglement:mid:3", LABELS, window_of=window_of)
    assert split.forget.tolist() == [2, 7, 11] and len(split.retain) == 17 and asked == [("mid", 3)]
    with pytest.raises(UsageError, match="entanglement:mid:3: needs embeddings"):
        select_forget("entanglement:mid:3", LABELS)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("entanglement:mixed:5", "level: found 'mixed', expected one of low, mid, high"),
        ("entanglement:high:0", "found 0, expected 1..19"),
        ("entanglement:high:20", "found 20, expected 1..19, the number of training examples but one"),
        ("entanglement:high:few", "found 'few'"),
        ("entanglement:high", "expected one of ids:FILE, .*entanglement:low|mid|high:SIZE"),
    ],
)
def test_bad_entanglement_requests_are_refused_before_anything_is_measured(request_, message):
    with pytest.raises(UsageError, match=message):
        select_forget(request_, LABELS, window_of=lambda level, size: pytest.fail("measured"))


def test_the_digest_of_ids_is_of_the_set():
    digest = ids_digest(np.array([3, 1], np.int32))
    # printf '\x01\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0' | sha256sum
    assert digest == ids_digest([1, 3]) == DIGEST_OF_1_3 != ids_digest([1, 2])


@pytest.mark.parametrize("request_", ["class:9", "random:20", "mislabeled", "ids:nowhere.txt"])
def test_requests_that_the_data_cannot_meet(request_):
    with pytest.raises(DataError):
        select_forget(request_, LABELS)


def test_a_class_request_that_leaves_nothing_is_refused():
    with pytest.raises(DataError, match="found all 4 training ids"):
        select_forget("class:0", np.zeros(4, int))


def test_memorization_needs_one_score_per_example():
    with pytest.raises(UsageError, match="needs memorization scores"):
        select_forget("memorization:high:2", LABELS)
    with pytest.raises(DataError, match="found 19, expected 20"):
        select_forget("memorization:high:2", LABELS, scores=np.zeros(19))


@pytest.mark.parametrize(
    "name, content",
    [
        ("ids.txt", b"1\ntwo\n"),
        ("ids.txt", b"1.5\n"),
        ("ids.txt", b"99999999999999999999\n"),
        ("ids.txt", b"\xff\xfe"),
        ("ids.npy", b"\x93NUMPY"),
        ("ids.npy", b""),
        ("ids.npz", b"PK\x03\x04"),
        ("ids.npz", b""),
    ],
)
def test_unreadable_id_files_are_named(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RumfastError, match=name):
        select_forget(f"ids:{path}", LABELS)


def test_id_files_are_never_unpickled(tmp_path):
    np.save(tmp_path / "ids.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "ids.npz", other=np.arange(3))
    for name in ("ids.npy", "ids.npz"):
        with pytest.raises(DataError, match=name):
            select_forget(f"ids:{tmp_path / name}", LABELS)
