"""What the figures share: sizes, titled axes and panels, named rows, marks of means and ends of axes."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rumfast.reporting.estimates import is_share
from rumfast.reporting.svg import PALETTE

WIDTH = 5.0  # inches; at 72 points each the text stays readable when a phone shrinks the figure to 380 px
LABEL = 26  # characters of a plan's name in a figure; the table has the whole name


def titled_axes(height: float, title: str) -> tuple[Figure, Axes]:
    """A figure of the common width (height in inches) with one titled axes."""
    figure = _titled_figure(height, title)
    ax = figure.add_subplot()
    ax.patch.set_visible(False)
    return figure, ax


def titled_panels(names: Sequence[str], columns: int, height: float, title: str) -> tuple[Figure, list[Axes]]:
    """A titled figure with one small axes per name, on common axes; ``height`` inches each.

    The lowest panel of each column carries the ticks of x, also where the last row is not full.
    """
    rows = max(1, math.ceil(len(names) / columns))
    figure = _titled_figure(0.7 + height * rows, title)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels: list[Axes] = list(grid.flat)
    for number, ax in enumerate(panels):
        ax.patch.set_visible(False)
        if number >= len(names):
            ax.set_axis_off()
            continue
        ax.set_title(short_name(names[number]), fontsize=8, loc="left", pad=2, color=PALETTE["ink"])
        ax.tick_params(length=0, labelsize=8, labelbottom=number + columns >= len(names))
    return figure, panels[: len(names)]


def _titled_figure(height: float, title: str) -> Figure:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.patch.set_visible(False)
    figure.suptitle(title, x=0.01, horizontalalignment="left")
    return figure


def name_rows(ax: Axes, names: Sequence[Any]) -> None:
    """One name per row, the first on top."""
    ax.set_yticks(range(len(names)), [short_name(name) for name in names], color=PALETTE["ink"])
    ax.set_ylim(max(len(names), 2) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color=PALETTE["rule"], linewidth=0.6)
    ax.spines["left"].set_visible(False)


def metric_axis(ax: Axes, metric: str) -> None:
    """Ticks of a metric along x, and an axis wide enough (0.1) that trifles do not look large."""
    share = is_share(metric)
    ax.xaxis.set_major_formatter(lambda value, _: tick_text(metric, value))
    low, high = ax.get_xlim()
    short = max(0.0, 0.1 - (high - low)) / 2
    low, high = low - short, high + short
    ax.set_xlim(max(low, -0.005) if share else low, min(high, 1.005) if share else high)


def tick_text(metric: str, value: float) -> str:
    """Ticks carry no more decimals than they need.

    >>> tick_text("tow", 0.95), tick_text("accuracy_test", 0.925)
    ('0.95', '92.5%')
    """
    return f"{100 * value:g}%" if is_share(metric) else f"{value:g}"


def write_no_value(ax: Axes, y: int) -> None:
    """Say in row ``y`` that there is nothing to draw."""
    ax.annotate(
        "no value",
        (0, y),
        xycoords=("axes fraction", "data"),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color=PALETTE["muted"],
    )


def dot_style(place: str | None) -> dict[str, Any]:
    """Marker of a mean: inside the band, outside it, no power, or not judged."""
    if place == "inside":
        return {"marker": "o", "markersize": 6.5, "color": PALETTE["in"], "linestyle": ""}
    if place == "outside":
        return {
            "marker": "D",
            "markersize": 5.5,
            "color": PALETTE["out"],
            "linestyle": "",
            "markerfacecolor": PALETTE["paper"],
            "markeredgewidth": 1.5,
        }
    hollow = {"markerfacecolor": PALETTE["paper"]} if place == "no power" else {}
    return {"marker": "o", "markersize": 6, "color": PALETTE["muted"], "linestyle": "", **hollow}


def short_name(name: Any) -> str:
    """A plan's name on one line of at most LABEL characters."""
    flat = " ".join(str(name).split())
    return flat if len(flat) <= LABEL else flat[: LABEL - 1] + "…"
