import pytest

from rumfast.errors import DataError
from rumfast.evaluation import tug_of_war

ORACLE = {"forget": 0.6, "retain": 0.99, "test": 0.93}


def test_an_oracle_against_itself_is_one():
    assert tug_of_war(ORACLE, ORACLE) == 1.0


@pytest.mark.parametrize(
    "change, value",
    [
        ({"forget": 0.9}, 0.7),
        ({"forget": 0.3}, 0.7),
        ({"retain": 0.89}, 0.9),
        ({"test": 0.43}, 0.5),
        ({"forget": 0.9, "retain": 0.89, "test": 0.43}, 0.7 * 0.9 * 0.5),
    ],
)
def test_hand_values_in_both_directions(change, value):
    assert tug_of_war(ORACLE | change, ORACLE) == pytest.approx(value, abs=1e-12)
    assert tug_of_war(ORACLE, ORACLE | change) == pytest.approx(value, abs=1e-12)


def test_the_worst_is_zero():
    assert tug_of_war({"forget": 1.0, "test": 1.0}, {"forget": 0.0, "test": 1.0}) == 0.0


@pytest.mark.parametrize(
    "unlearned, oracle",
    [({}, {}), ({"forget": 1.0}, {"test": 1.0}), ({"forget": 1.0}, {"forget": 1.0, "test": 1.0})],
)
def test_other_quantities_cannot_be_compared(unlearned, oracle):
    with pytest.raises(DataError, match="expected the same quantities"):
        tug_of_war(unlearned, oracle)
