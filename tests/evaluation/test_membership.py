import numpy as np
import pytest

from rumfast.errors import DataError
from rumfast.evaluation import modified_entropy, svc_mia
from rumfast.evaluation.membership import FEATURES, confidence, features


def test_modified_entropy_by_hand():
    found = modified_entropy(np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]]), np.array([0, 2]))
    own_2 = -0.9 * np.log(0.1) - 0.7 * np.log(0.3) - 0.2 * np.log(0.8)
    np.testing.assert_allclose(found, [0.1622, own_2], atol=5e-5)
    np.testing.assert_allclose(
        found[0], -0.3 * np.log(0.7) - 0.2 * np.log(0.8) - 0.1 * np.log(0.9), rtol=1e-12
    )


def test_modified_entropy_at_certainty_is_zero_or_infinite():
    certain = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], np.float32)
    assert modified_entropy(certain, np.array([0, 1])).tolist() == [0.0, np.inf]


def test_modified_entropy_falls_as_the_label_becomes_likely():
    p = np.linspace(0.05, 0.95, 19)
    values = modified_entropy(np.stack([p, 1 - p], 1), np.zeros(19, int))
    assert (np.diff(values) < 0).all()  # plain entropy would rise up to p = 1/2


def test_confidence_is_the_softmax_at_the_label():
    logits = np.array([[1.0, 2.0, 3.0], [500.0, -500.0, 0.0]], np.float32)
    expected = [np.exp(-1) / (1 + np.exp(-1) + np.exp(-2)), 0.0]
    np.testing.assert_allclose(confidence(logits, np.array([1, 1])), expected, rtol=1e-12, atol=1e-200)


def draws(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.random(size) for size in sizes]


def test_a_feature_that_ignores_membership_gives_no_verdict():
    shares = [svc_mia(*draws(1000, 400, 300, seed=seed)) for seed in range(12)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.12)


def test_separated_features_give_the_verdict():
    members, others, targets = draws(300, 200, 100)
    assert svc_mia(members + 2, others - 2, targets + 2) == 0.0
    assert svc_mia(members + 2, others - 2, targets - 2) == 1.0
    half = np.concatenate([targets[:50] + 2, targets[50:] - 2])
    assert svc_mia(members + 2, others - 2, half) == 0.5
    assert svc_mia(others - 2, members + 2, half[:50]) == 1.0  # who is a member decides, not the size


def test_classes_are_balanced_however_many_members_there_are():
    # Identical distributions: fitted on 50 to 1, the attack would call every target a member.
    rng = np.random.default_rng(3)
    shares = [
        svc_mia(rng.normal(size=5000), rng.normal(size=100), rng.normal(size=200), seed=seed)
        for seed in range(12)
    ]
    assert 0.3 < np.mean(shares) < 0.7


def test_the_draw_is_the_seeds_and_the_order_of_targets_does_not_matter():
    members, others, targets = draws(800, 500, 200)
    others = others + 0.3
    found = svc_mia(members, others, targets, most=60)
    assert (
        found
        == svc_mia(members, others, targets[::-1], most=60)
        == svc_mia(members, others, targets, most=60, seed=0)
    )
    assert len({svc_mia(members, others, targets, most=60, seed=seed) for seed in range(6)}) > 1


def test_most_bounds_the_fit(monkeypatch):
    from rumfast.evaluation import membership

    fitted = []
    fit = membership.SVC.fit
    monkeypatch.setattr(
        membership.SVC, "fit", lambda self, x, y: fitted.append((len(x), int(y.sum()))) or fit(self, x, y)
    )
    members, others, targets = draws(90, 70, 10)
    svc_mia(members, others, targets, most=20)
    svc_mia(members, others, targets)
    assert fitted == [(40, 20), (140, 70)]


@pytest.mark.parametrize("position, name", [(0, "members"), (1, "non-members"), (2, "targets")])
@pytest.mark.parametrize("bad", [np.zeros(0), np.array([1, np.nan]), np.array([np.inf]), np.zeros((2, 2, 2))])
def test_errors_name_the_set(position, name, bad):
    arrays = draws(5, 5, 5)
    arrays[position] = bad
    with pytest.raises(DataError, match=f"svc_mia: {name} must be finite numbers of at least one example"):
        svc_mia(*arrays)


def test_other_features_than_the_members_are_refused():
    members, others, targets = draws(5, 5, 5)
    with pytest.raises(DataError, match="svc_mia: targets"):
        svc_mia(members, others, np.stack([targets, targets], 1))


def test_features_by_hand():
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.25, 0.5, 0.25]])).astype(np.float32)
    found = features(logits, np.array([0, 0]))
    assert set(found) == set(FEATURES)
    np.testing.assert_allclose(found["confidence"], [0.7, 0.25], rtol=1e-6)
    assert found["correctness"].tolist() == [1.0, 0.0]
    entropies = [0.7 * np.log(1 / 0.7) + 0.2 * np.log(5) + 0.1 * np.log(10), 1.5 * np.log(2)]
    np.testing.assert_allclose(found["entropy"], entropies, rtol=1e-6)
    np.testing.assert_allclose(found["modified_entropy"][0], 0.1622, atol=5e-5)
    np.testing.assert_allclose(found["probabilities"], [[0.7, 0.2, 0.1], [0.25, 0.5, 0.25]], rtol=1e-6)
    of_the_last = features(logits, np.array([2, 2]))["probabilities"]
    np.testing.assert_allclose(of_the_last, [[0.1, 0.7, 0.2], [0.25, 0.5, 0.25]], rtol=1e-6)


def test_all_probabilities_show_a_wrong_label_that_was_learned():
    rng = np.random.default_rng(0)
    true_N, sure = rng.integers(4, size=300), 6 * np.eye(4, dtype=np.float32)
    wrong_N = (true_N + 1) % 4
    logits = sure[true_N] + rng.normal(0, 1, (300, 4)).astype(np.float32)
    memorized = sure[wrong_N] + rng.normal(0, 1, (300, 4)).astype(np.float32)
    known = features(logits[:200], true_N[:200])["probabilities"]
    share = {
        name: svc_mia(known[:100], known[100:], features(of_forget, wrong_N)["probabilities"])
        for name, of_forget in (("retrained", logits), ("original", memorized))
    }
    assert abs(share["retrained"] - share["original"]) > 0.3


def test_features_stay_finite_however_sure_a_model_is():
    logits = np.array([[900.0, 0.0, -900.0]] * 3, np.float32)
    for name, values in features(logits, np.array([0, 1, 2])).items():
        assert np.isfinite(values).all(), name


def test_all_probabilities_tell_what_confidence_does_not():
    # Members put the rest on class 1, others on class 2; both are as sure of class 0.
    rng = np.random.default_rng(0)
    own = rng.uniform(0.4, 0.6, 200)
    member = np.stack([own, 1 - own, 0 * own], 1)
    other = member[:, [0, 2, 1]]
    assert svc_mia(member[:80], other[80:160], other[160:]) == 1.0
    assert svc_mia(member[:80, 0], other[80:160, 0], other[160:, 0]) == pytest.approx(0.5, abs=0.3)
