import json

import numpy as np
import pytest

from rumfast.errors import DataError, MismatchError
from rumfast.store import read_npz, write_npz
from rumfast.sweeps.records import MemberRecord, is_diverged, load_record, save_record


def record(n=13, tests=5, index=4, seed=0, **changes):
    rng = np.random.default_rng(seed)
    fields = dict(
        index=index,
        include_N=rng.random(n) < 0.7,
        correct_N=rng.random(n) < 0.5,
        correct_test_N=rng.random(tests) < 0.5,
        margin_N=rng.normal(0, 30, n).astype(np.float16),
        margin_test_N=rng.normal(0, 30, tests).astype(np.float16),
        fingerprint="abc",
    )
    return MemberRecord(**{**fields, **changes})


def diverged(n=13, index=0):
    empty = np.empty(0, bool), np.empty(0, bool), np.empty(0, np.float16), np.empty(0, np.float16)
    return MemberRecord(index, np.arange(n) % 2 == 0, *empty, "abc", diverged=True)


def assert_same(first, second):
    for name, value in vars(first).items():
        other = getattr(second, name)
        if isinstance(value, np.ndarray):
            assert value.dtype == other.dtype
            np.testing.assert_array_equal(value, other)
        else:
            assert value == other and type(value) is type(other)


@pytest.mark.parametrize("n, tests", [(13, 5), (8, 8), (1, 1), (0, 0), (16, 9), (1000, 333)])
def test_round_trip_at_sizes_that_do_and_do_not_fill_bytes(tmp_path, n, tests):
    save_record(tmp_path / "m" / "4.npz", record(n, tests))
    assert_same(load_record(tmp_path / "m" / "4.npz"), record(n, tests))


def test_diverged_records_carry_no_predictions(tmp_path):
    save_record(tmp_path / "0.npz", diverged())
    found = load_record(tmp_path / "0.npz")
    assert_same(found, diverged())
    assert found.diverged and len(found.include_N) == 13 and len(found.correct_N) == len(found.margin_N) == 0


@pytest.mark.parametrize("n, epochs", [(13, 3), (8, 1), (1, 2)])
def test_events_and_wide_margins_make_the_round_trip(tmp_path, n, epochs):
    rng = np.random.default_rng(n)
    events = {"learned_EN": rng.random((epochs, n)) < 0.5, "proxies_KN": rng.random((4, n), np.float32)}
    wide = {"margin_N": rng.normal(size=n).astype(np.float32), **events}
    save_record(tmp_path / "x.npz", record(n, **wide))
    assert_same(load_record(tmp_path / "x.npz"), record(n, **wide))


def test_whether_it_diverged_is_known_from_a_few_bytes(tmp_path):
    save_record(tmp_path / "0.npz", diverged())
    save_record(tmp_path / "4.npz", record())
    assert is_diverged(tmp_path / "0.npz") and not is_diverged(tmp_path / "4.npz")
    for damaged in (b"", b"PK"):
        (tmp_path / "4.npz").write_bytes(damaged)
        with pytest.raises(DataError, match="4.npz: damaged"):
            is_diverged(tmp_path / "4.npz")
    write_npz(tmp_path / "5.npz", {"meta": np.array("{}")})
    with pytest.raises(DataError, match="5.npz: not a member record"):
        is_diverged(tmp_path / "5.npz")


def test_a_record_is_small(tmp_path):
    rng = np.random.default_rng(0)
    big = record(45_000, 10_000, margin_N=rng.normal(8, 4, 45_000).astype(np.float16))
    save_record(tmp_path / "x.npz", big)
    assert (
        tmp_path / "x.npz"
    ).stat().st_size < 140_000  # 2 bytes of margin and 2 bits per example, compressed


def test_a_second_writer_agrees_or_is_refused(tmp_path):
    assert save_record(tmp_path / "x.npz", record())
    assert not save_record(tmp_path / "x.npz", record())
    with pytest.raises(MismatchError, match="x.npz: exists with other content"):
        save_record(tmp_path / "x.npz", record(seed=1))
    assert_same(load_record(tmp_path / "x.npz"), record())


def change_meta(arrays, **changes):
    meta = json.loads(str(arrays["meta"]))
    arrays["meta"] = np.array(
        json.dumps({key: value for key, value in {**meta, **changes}.items() if value != "gone"})
    )


DAMAGE = {
    "no meta": lambda arrays: arrays.pop("meta"),
    "meta is not JSON": lambda arrays: arrays.update(meta=np.array("{")),
    "meta is a list": lambda arrays: arrays.update(meta=np.array("[1]")),
    "other schema": lambda arrays: change_meta(arrays, schema="rumfast/member/0"),
    "no index": lambda arrays: change_meta(arrays, index="gone"),
    "no includes": lambda arrays: arrays.pop("include"),
    "too many examples": lambda arrays: change_meta(arrays, examples=100),
    "one byte more": lambda arrays: change_meta(arrays, examples=17),
    "negative": lambda arrays: change_meta(arrays, examples=-3),
    "examples is text": lambda arrays: change_meta(arrays, examples="many"),
    "fewer correct": lambda arrays: arrays.update(correct=arrays["correct"][:1]),
    "fewer test": lambda arrays: arrays.update(correct_test=arrays["correct_test"][:0]),
    "bits are floats": lambda arrays: arrays.update(include=np.zeros(2)),
    "fewer margins": lambda arrays: arrays.update(margin=arrays["margin"][:-1]),
    "fewer test margins": lambda arrays: arrays.update(margin_test=arrays["margin_test"][:-1]),
    "diverged with predictions": lambda arrays: change_meta(arrays, diverged=True),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_files_that_are_not_whole_records_are_named(tmp_path, name):
    save_record(tmp_path / "good.npz", record())
    arrays = read_npz(tmp_path / "good.npz")
    DAMAGE[name](arrays)
    write_npz(tmp_path / "bad.npz", arrays)
    with pytest.raises(DataError, match="bad.npz: (not a member record|margins are not)") as error:
        load_record(tmp_path / "bad.npz")
    assert str(error.value).count("bad.npz") == 1
    with pytest.raises(DataError, match="missing.npz: no such file"):
        load_record(tmp_path / "missing.npz")
