"""Scores of embeddings, computed where these lie: on CUDA where there is one."""

import numpy as np
import pytest
import torch

from rumfast.kernels.moments import moments
from rumfast.scores import entanglement_score, mmd2, neighbour_overlap
from rumfast.scores.entanglement import entanglement_of
from rumfast.scores.windows import measure_windows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCORES = {
    "entanglement": entanglement_score,
    "entanglement, midpoint": lambda retain, forget: entanglement_score(retain, forget, "midpoint"),
    "entanglement of moments on two devices": lambda retain, forget: entanglement_of(
        moments(retain), moments(forget.cpu())
    ),
    "mmd2": mmd2,
    "mmd2, biased": lambda retain, forget: mmd2(retain, forget, [1.0, 3.0], unbiased=False),
    "neighbour overlap": neighbour_overlap,
    "windows": lambda retain, _: measure_windows(retain, np.arange(len(retain))[::-1], 30).entanglement_W,
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", SCORES)
def test_scores_do_not_depend_on_where_the_embeddings_lie(name):
    draw = np.random.default_rng(0)
    retain, forget = draw.normal(size=(300, 17)), draw.normal(0.5, size=(70, 17))
    exact = SCORES[name](torch.from_numpy(retain), torch.from_numpy(forget))
    found = SCORES[name](*(torch.from_numpy(points).float().to(DEVICE) for points in (retain, forget)))
    assert found == pytest.approx(exact, rel=1e-5, abs=1e-6)
