import csv

import numpy as np
import pytest

from rumfast.errors import DataError, MismatchError, UsageError
from rumfast.score_files import read_scores, write_scores

LABEL_N = np.array([2, 0, 1, 1])
SCORE_N = np.array([0.5, -0.25, np.nan, 1.0])


def columns():
    return {
        "id": np.arange(4),
        "label": LABEL_N,
        "memorization": SCORE_N,
        "standard_error": np.array([0.1, 0.2, np.nan, 0.05]),
        "included": np.array([7, 6, 10, 8]),
        "excluded": np.array([3, 4, 0, 2]),
    }


@pytest.mark.parametrize(
    "arrays",
    [
        {"tr_mem": SCORE_N, "tr_labels": LABEL_N, "infl": np.zeros((4, 2))},  # Feldman & Zhang
        {"tr_mem": SCORE_N.astype(np.float32), "tr_labels": LABEL_N.astype(np.int32)},
        {"memorization": SCORE_N},  # RUM's code
    ],
)
def test_published_files_are_read(tmp_path, arrays):
    np.savez(tmp_path / "s.npz", **arrays)
    found = read_scores(tmp_path / "s.npz", LABEL_N)
    np.testing.assert_array_equal(found.score_N, SCORE_N)
    assert found.score_N.dtype == np.float64 and np.isnan(found.standard_error_N).all()
    assert not found.included_N.any()


def test_ours_come_back_whole(tmp_path):
    write_scores(tmp_path / "s.npz", columns())
    found = read_scores(tmp_path / "s.npz", LABEL_N)
    for value, key in zip(found, ("memorization", "standard_error", "included", "excluded"), strict=True):
        np.testing.assert_array_equal(value, columns()[key])
    with np.load(tmp_path / "s.npz") as stored:  # as others read it
        np.testing.assert_array_equal(stored["tr_mem"], SCORE_N)
        np.testing.assert_array_equal(stored["tr_labels"], LABEL_N)


def test_csv_and_parquet_hold_the_same_columns(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in ("s.csv", "s.parquet"):
        write_scores(tmp_path / name, columns())
    with (tmp_path / "s.csv").open() as file:
        rows = list(csv.DictReader(file))
    table = parquet.read_table(tmp_path / "s.parquet")
    assert list(rows[0]) == table.column_names == list(columns())
    for key, column in columns().items():
        np.testing.assert_array_equal([float(row[key]) for row in rows], column)
        np.testing.assert_array_equal(table[key].to_numpy(), column)


@pytest.mark.parametrize(
    "arrays, error, message",
    [
        ({"tr_mem": SCORE_N, "tr_labels": LABEL_N[::-1]}, MismatchError, "4 labels|2 labels|labels differ"),
        ({"tr_mem": SCORE_N, "tr_labels": LABEL_N[:3]}, MismatchError, r"found labels \(3,\)"),
        ({"tr_mem": SCORE_N[:3]}, MismatchError, "scores 3 examples, the training set has 4"),
        ({"memorisation": SCORE_N}, DataError, "found memorisation, expected one of memorization, tr_mem"),
        ({"tr_mem": np.ones((4, 1))}, DataError, r"found scores float64 \(4, 1\)"),
        ({"tr_mem": np.full(4, np.nan)}, DataError, "scores are infinite, or none is a number"),
        ({"tr_mem": np.array([0, 1, np.inf, 0])}, DataError, "scores are infinite"),
        ({"tr_mem": SCORE_N, "included": np.ones(3, int)}, DataError, r"found included int64 \(3,\)"),
        ({"tr_mem": SCORE_N, "standard_error": np.array(list("abcd"))}, DataError, "found standard_error"),
        ({"tr_mem": np.array(list("abcd"))}, DataError, "found scores <U1"),
        ({"tr_mem": np.array([None] * 4, object)}, DataError, "damaged or not an npz"),
    ],
)
def test_other_data_and_other_files_are_refused(tmp_path, arrays, error, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(error, match=f"bad.npz: .*({message})"):
        read_scores(tmp_path / "bad.npz", LABEL_N)


def test_one_label_that_differs_is_named(tmp_path):
    other_N = LABEL_N.copy()
    other_N[2] = 0
    np.savez(tmp_path / "s.npz", tr_mem=SCORE_N, tr_labels=other_N)
    with pytest.raises(MismatchError, match="1 labels differ .* first at id 2: there 0, here 1"):
        read_scores(tmp_path / "s.npz", LABEL_N)


def test_unknown_endings_are_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(UsageError, match="ends in .npz, .parquet or .csv"):
        write_scores(tmp_path / "s.xlsx", columns())
    assert not list(tmp_path.iterdir())
