"""Membership inference: does the model still treat forgotten examples as members of its training set?"""

import numpy as np
from scipy.special import softmax, xlogy
from sklearn.svm import SVC

from rumfast.errors import DataError


def confidence(logits_NC: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """p_y of each example, [N] in [0, 1]."""
    return softmax(logits_NC.astype(np.float64), axis=1)[np.arange(len(label_N)), label_N]


def modified_entropy(probability_NC: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """Modified entropy −(1−p_y) log p_y − Σ_{c≠y} p_c log(1−p_c) (Song & Mittal 2021, arXiv 2003.10595),
    [N] in [0, ∞].

    >>> round(float(modified_entropy(np.array([[0.7, 0.2, 0.1]]), np.array([0]))[0]), 4)
    0.1622
    """
    probability_NC = probability_NC.astype(np.float64)
    rows = np.arange(len(label_N))
    own_N = probability_NC[rows, label_N]
    others_NC = xlogy(probability_NC, 1 - probability_NC)
    others_NC[rows, label_N] = 0
    return -xlogy(1 - own_N, own_N) - others_NC.sum(1)


LEAST = 1e-15  # probability: beyond it, logarithms of what rounds to 0 or 1 would be infinite
FEATURES = ("confidence", "correctness", "entropy", "modified_entropy", "probabilities")


def features(logits_NC: np.ndarray, label_N: np.ndarray) -> dict[str, np.ndarray]:
    """What SVC-MIA may look at, by name of ``FEATURES``: [N], or [N, C] for all probabilities.

    Correctness is 0 or 1, entropy −Σ p log p in nats, the others as :func:`confidence` and
    :func:`modified_entropy` say; the last of probabilities no nearer to 0 and 1 than ``LEAST``. Of all
    probabilities the label's comes first, then the others in descending order: in the order of the classes,
    as in the research code, being sure of a wrong label is no different from being sure of the right one.
    """
    probability_NC = softmax(logits_NC.astype(np.float64), axis=1)
    own_N = probability_NC[np.arange(len(label_N)), label_N]
    is_other_NC = np.arange(probability_NC.shape[1]) != label_N[:, None]
    other_NC = probability_NC[is_other_NC].reshape(len(label_N), -1)
    return {
        "confidence": own_N,
        "correctness": (logits_NC.argmax(1) == label_N).astype(np.float64),
        "entropy": -xlogy(probability_NC, probability_NC).sum(1),
        "modified_entropy": modified_entropy(probability_NC.clip(LEAST, 1 - LEAST), label_N),
        "probabilities": np.column_stack([own_N, -np.sort(-other_NC, axis=1)]),
    }


def svc_mia(
    member_M: np.ndarray, non_member_N: np.ndarray, target_F: np.ndarray, *, most: int = 5000, seed: int = 0
) -> float:
    """Share of targets that an SVC trained on members and non-members calls non-member.

    The attack of the research code: SVC(C=3, gamma="auto", rbf) on one feature per example, fitted on
    equally many members (retain examples) and non-members (test examples) drawn at random.

    Args:
        member_M, non_member_N, target_F: a feature of each example, such as its confidence, or some [N, D].
        most: most examples of each kind to fit on; the fit is quadratic in it.
        seed: of the draw.

    Returns:
        A share in [0, 1]. Near 1 the forget set looks unseen; a model that ignores membership gives what its
        oracle gives, not necessarily 0.5, since members and non-members may be told apart by difficulty.

    Raises:
        DataError: an empty set, other features than the members', or a value that is not finite.
    """
    sets = {"members": member_M, "non-members": non_member_N, "targets": target_F}
    for name, values in sets.items():
        fits = values.ndim in (1, 2) and values.shape[1:] == member_M.shape[1:]
        if not fits or not len(values) or not np.isfinite(values).all():
            raise DataError(
                f"svc_mia: {name} must be finite numbers of at least one example, as many for each as for "
                f"members, got shape {values.shape}"
            )
    size = min(len(member_M), len(non_member_N), most)
    draw = np.random.default_rng(seed)
    chosen = [draw.choice(values, size, replace=False) for values in (member_M, non_member_N)]
    attack = SVC(C=3, gamma="auto", kernel="rbf")
    attack.fit(_columns(np.concatenate(chosen)), np.repeat([1, 0], size))
    return float((attack.predict(_columns(target_F)) == 0).mean())


def _columns(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1)
