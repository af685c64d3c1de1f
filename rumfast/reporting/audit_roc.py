"""ROC curves of an audit's membership attacks, read where false accusations are rare."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from rumfast.reporting.audit_text import Record
from rumfast.reporting.axes import dot_style, titled_panels
from rumfast.reporting.svg import PALETTE, STYLE, to_svg

RATES = (0.01, 0.001)  # false positive rates at which an attack is read
DECADES = (0.001, 0.01, 0.1, 1.0)
GRID = np.union1d(np.geomspace(2e-4, 1, 240), RATES)  # false positive rates at which a curve is drawn


class Attack(NamedTuple):
    """How a membership attack is drawn."""

    label: str
    role: str  # of the palette
    place: str  # whose mark it takes
    line: Any


ATTACKS = {
    "u_lira": Attack("U-LiRA", "in", "inside", "-"),
    "rmia": Attack("RMIA", "out", "outside", (0, (4, 1.5))),
}


def roc_panels(record: Record) -> str:
    """ROC curves of U-LiRA and RMIA for each population, both axes logarithmic, chance dotted.

    Each is of the attack or its opposite, at each rate of whichever finds more. Marked: the true positive
    rate at 1 % and at 0.1 % false positives. Returns SVG.
    """
    curves, title = record["roc"], "ROC curves of membership attacks"
    with mpl.rc_context(STYLE):
        figure, panels = titled_panels(list(curves), 3, 1.3, title)
        said = []
        for number, (name, attacks) in enumerate(curves.items()):
            ax = panels[number]
            _draw_chance(ax)
            for attack, curve in attacks.items():
                read = _draw_curve(ax, f"{attack}-{number}", ATTACKS[attack], curve)
                found = [f"{tpr:.1%} at {rate:g} false positives" for rate, tpr in read.items()]
                said.append(f"{name}, {ATTACKS[attack].label}: {', '.join(found)}")
        look: Any = {"fontsize": 9, "color": PALETTE["muted"]}
        figure.supxlabel("false positive rate (solid: U-LiRA, dashed: RMIA)", **look)
        figure.supylabel("true positive rate", **look)
        return to_svg(figure, f"{title}. True positive rate: {'; '.join(said)}.")


def _draw_chance(ax: Axes) -> None:
    """Logarithmic axes in percent, and the line of an attack that guesses."""
    ax.set(xscale="log", yscale="log", xlim=(GRID[0], 1), ylim=(GRID[0], 1.4))
    for axis in (
        ax.xaxis,
        ax.yaxis,
    ):  # matplotlib's own labels would be mathematics, which STYLE leaves as TeX
        axis.set_major_locator(FixedLocator(DECADES))
        axis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    ax.minorticks_off()
    ax.plot(GRID[[0, -1]], GRID[[0, -1]], color=PALETTE["muted"], linewidth=0.8, linestyle=":")
    ax.grid(color=PALETTE["rule"], linewidth=0.6)


def _draw_curve(ax: Axes, gid: str, look: Attack, curve: Mapping[str, Sequence[float]]) -> dict[float, float]:
    """One curve and its two marks; returns what these say, by false positive rate.

    It is drawn on a grid: a curve of 64 models and 1,000 examples has as many corners as these make pairs.
    """
    colour = PALETTE[look.role]
    heights = np.maximum(tpr_at(curve, GRID), GRID[0])
    ax.plot(
        GRID,
        heights,
        color=colour,
        linestyle=look.line,
        linewidth=1.3,
        drawstyle="steps-post",
        gid=f"roc-{gid}",
    )
    read = dict(zip(RATES, tpr_at(curve, np.array(RATES)).tolist(), strict=True))
    style = dot_style(look.place) | {"markersize": 3.5}
    for rate, reached in read.items():
        ax.plot([rate], [max(reached, GRID[0])], **style, gid=f"tpr-{gid}-{rate:g}", zorder=3)
    return read


def tpr_at(curve: Mapping[str, Sequence[float]], rate_G: np.ndarray) -> np.ndarray:
    """True positive rate [G] of the last point of a ROC curve with at most ``rate_G`` false positives.

    curve: ``fpr`` and ``tpr``, both rising. Zero where even the first point has more false positives.

    >>> tpr_at({"fpr": [0.0, 0.01, 0.2, 1.0], "tpr": [0.1, 0.3, 0.6, 1.0]}, np.array([0.05]))
    array([0.3])
    """
    place_G = np.searchsorted(np.asarray(curve["fpr"], float), rate_G, side="right")
    return np.concatenate([[0.0], curve["tpr"]])[place_G]
