"""One case of a record: samples of interleaved variants become medians, spreads and ratios."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Samples = Mapping[str, list[float]]  # variant → milliseconds, round by round; one variant is OURS
OURS = "ours"
Case = dict[str, Any]  # as ``case`` returns it
Measure = Callable[[], list[Case]]  # cases that are measured together; a suite names several


def case(
    name: str,
    shape: str,
    dtype: str,
    samples: Samples,
    *,
    missing: Mapping[str, str] | None = None,
    throughput: tuple[str, float] | None = None,
    notes: Mapping[str, Mapping[str, float]] | None = None,
) -> Case:
    """Summarise one case as the record holds it.

    The ratio is that of the medians, median(peer) / median(ours): above 1 is faster than the peer. Its spread
    is the 20th and 80th percentile of the ratios of the rounds, in which both ran one after the other.

    Args:
        samples: milliseconds of ``ours`` and of each peer, equally many.
        missing: peers that could not run, with the reason.
        throughput: unit, and how many of it per second a call that takes one second does.
        notes: further quantities (error, accuracy, …), each by variant.

    >>> case("sum", "[4]", "float32", {"ours": [1.0, 2.0, 3.0], "loop": [2.0, 8.0, 9.0]})["ratio"]
    {'loop': 4.0}
    """
    ours = np.array(samples[OURS])
    peers = {peer: np.array(times) for peer, times in samples.items() if peer != OURS}
    notes = dict(notes or {})
    if throughput is not None:
        unit, count = throughput
        notes[unit] = {variant: 1000 * count / float(np.median(times)) for variant, times in samples.items()}
    return {
        "name": name,
        "shape": shape,
        "dtype": dtype,
        "rounds": len(ours),
        "ours": quantiles(ours),
        "peers": {peer: quantiles(times) for peer, times in peers.items()}
        | {peer: {"missing": reason} for peer, reason in (missing or {}).items()},
        "ratio": {peer: float(np.median(times) / np.median(ours)) for peer, times in peers.items()},
        "spread": {peer: np.quantile(times / ours, (0.2, 0.8)).tolist() for peer, times in peers.items()},
        "notes": {key: dict(values) for key, values in notes.items()},
    }


def quantiles(times: np.ndarray) -> dict[str, float]:
    """20th, 50th and 80th percentile.

    >>> quantiles(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    {'p20': 2.0, 'p50': 3.5, 'p80': 5.0}
    """
    low, middle, high = np.quantile(times, (0.2, 0.5, 0.8)).tolist()
    return {"p20": low, "p50": middle, "p80": high}
