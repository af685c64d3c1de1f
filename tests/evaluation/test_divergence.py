import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax

from rumfast.errors import DataError
from rumfast.evaluation import divergence
from rumfast.evaluation.divergence import disagreement, js_divergence, populations


def probabilities(*shape, seed=0, scale=3):
    return softmax(scale * np.random.default_rng(seed).normal(size=shape), axis=-1).astype(np.float32)


def test_disagreement_by_hand():
    ours = np.array([[0, 1, 2], [0, 1, 1]], np.int32)
    theirs = np.array([[0, 1, 2], [1, 1, 2], [2, 2, 0]], np.int32)
    np.testing.assert_allclose(disagreement(ours, theirs), np.array([[0, 1, 3], [1, 2, 3]]) / 3)


CLASSES = arrays(np.int32, st.tuples(st.integers(1, 4), st.just(6)), elements=st.integers(0, 2))


@given(CLASSES, CLASSES)
def test_disagreement_is_symmetric_and_a_share(ours, theirs):
    found = disagreement(ours, theirs)
    assert (found == disagreement(theirs, ours).T).all()
    assert (found >= 0).all() and (found <= 1).all() and not np.diagonal(disagreement(ours, ours)).any()
    for m, k in np.ndindex(found.shape):
        assert (found[m, k] == 0) == (ours[m] == theirs[k]).all()


def test_js_against_scipy():
    ours, theirs = probabilities(2, 5, 4, seed=1), probabilities(3, 5, 4, seed=2)
    expected = [
        [np.mean([jensenshannon(p, q) ** 2 for p, q in zip(mine, yours, strict=True)]) for yours in theirs]
        for mine in ours
    ]
    np.testing.assert_allclose(js_divergence(ours, theirs), expected, rtol=1e-5)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 30, 3000]))
@settings(max_examples=40, deadline=None)
def test_js_is_symmetric_bounded_and_zero_where_equal_alone(seed, scale):
    both = probabilities(5, 3, 4, seed=seed, scale=scale)
    both[1] = both[0]
    found = js_divergence(both[:2], both)
    assert (found == js_divergence(both, both[:2]).T).all()
    assert (found >= 0).all() and (found <= np.log(2)).all()
    equal = [[(p == q).all() for q in both] for p in both[:2]]
    assert ((found == 0) == np.array(equal)).all()


def test_js_of_disjoint_certainties_is_log_2():
    ours, theirs = np.eye(4)[None, [0, 1, 2]], np.eye(4)[None, [1, 2, 3]]
    assert js_divergence(ours, theirs)[0, 0] == np.log(2)
    assert js_divergence(ours, np.eye(4)[None, [0, 1, 3]])[0, 0] == pytest.approx(np.log(2) / 3)


def test_blocks_and_order_make_no_difference(monkeypatch):
    ours, theirs = probabilities(3, 40, 5, seed=1), probabilities(4, 40, 5, seed=2)
    found = js_divergence(ours, theirs)
    np.testing.assert_allclose(js_divergence(ours[:, ::-1], theirs[:, ::-1]), found, rtol=1e-12)
    np.testing.assert_allclose(js_divergence(ours[[2, 0, 1]], theirs), found[[2, 0, 1]], rtol=1e-12)
    monkeypatch.setattr(divergence, "CELLS_AT_ONCE", 12)  # three probabilities of each oracle at a time
    np.testing.assert_allclose(js_divergence(ours, theirs), found, rtol=1e-12)
    assert not np.diagonal(js_divergence(ours, ours)).any()


def test_rows_that_are_no_probabilities():
    right = probabilities(2, 3, 4)
    for wrong in (right * 1.1, right + np.array([1.0, -1.0, 0.0, 0.0]), np.zeros_like(right)):
        with pytest.raises(DataError, match="below 0 or rows that do not sum to 1"):
            js_divergence(right, wrong)
    with pytest.raises(DataError, match="expected models × examples × classes"):
        js_divergence(right[0], right[0])
    with pytest.raises(
        DataError, match="js_divergence: 1 of 24 probabilities of the audited models is not finite"
    ):
        js_divergence(np.where(np.arange(24).reshape(2, 3, 4) == 7, np.nan, right), right)


@pytest.mark.parametrize("ours, theirs", [((2, 3), (2, 4)), ((0, 3), (2, 3)), ((2, 0), (2, 0)), ((3,), (3,))])
def test_shapes_that_do_not_fit(ours, theirs):
    with pytest.raises(DataError, match="klom: got margins of shapes"):
        populations("klom", np.ones(ours), np.ones(theirs))


def test_too_few_models_and_what_is_not_finite():
    with pytest.raises(DataError, match="lira: got 0 oracles, expected at least 1"):
        populations("lira", np.ones((2, 3)), np.ones((0, 3)))
    with pytest.raises(DataError, match="lira: got 2 audited models, expected at least 3"):
        populations("lira", np.ones((2, 3)), np.ones((3, 3)), least=3)
    wrong = np.ones((2, 3))
    wrong[1] = [1, np.inf, np.nan]
    with pytest.raises(
        DataError, match=r"2 of 6 margins of the oracles are not finite, first inf at \[1, 1\]"
    ):
        populations("lira", np.ones((2, 3)), wrong)
