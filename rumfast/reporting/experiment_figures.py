"""The figures of an experiment: a metric against difficulty, and paired differences by claim."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.transforms import blended_transform_factory

from rumfast.reporting.axes import dot_style, titled_axes, titled_panels
from rumfast.reporting.estimates import band_range, estimate, metric_estimate, metric_text, standing
from rumfast.reporting.svg import PALETTE, STYLE, to_svg

COLUMNS = 4
PANEL = 1.15  # inches high
ROW = 0.2  # inches per difference
LOOKS = {"held": "inside", "contradicted": "outside"}  # drawn as a mean inside, or outside, a band is


def level_panels(sets: Sequence[Mapping[str, Any]], axis: str, metric: str, title: str) -> str:
    """One panel per algorithm: a metric with its 95 % interval on each forget set, from easy to hard.

    sets: those of one axis of a difficulty record; they are ordered by what was measured. A shaded box is the
    null band of that set's own oracles. Returns SVG.

    >>> one = {"axis": "memorization", "level": "low", "memorization": 0.1, "bands": {}, "algorithms": {}}
    >>> level_panels([one], "memorization", "tow", "ToW")[:4]
    '<svg'
    """
    ordered = sorted(sets, key=lambda each: each[axis])
    names = list(dict.fromkeys(name for each in ordered for name in each["algorithms"]))
    with mpl.rc_context(STYLE):
        figure, panels = titled_panels(names, COLUMNS, PANEL, title)
        for number, ax in enumerate(panels):
            _draw_panel(ax, number, names[number], ordered, metric)
            ax.set_xticks(range(len(ordered)), [each["level"] for each in ordered])
            ax.set_xlim(-0.6, len(ordered) - 0.4)
        measured = ", ".join(f"{each['level']} {each[axis]:.3g}" for each in ordered)
        figure.supxlabel(f"{axis} as measured: {measured}", fontsize=9, color=PALETTE["muted"])
        return to_svg(figure, f"{title}. {_said(ordered, names, metric)}")


def _draw_panel(ax: Axes, number: int, name: str, sets: Sequence[Mapping[str, Any]], metric: str) -> None:
    """One algorithm: band, interval and mean at each level, the means joined by a line."""
    means = []
    for x, each in enumerate(sets):
        band = each["bands"].get(metric)
        if limits := band_range(band):
            ax.fill_between([x - 0.4, x + 0.4], *limits, color=PALETTE["band"], linewidth=0, zorder=0)
        plan = each["algorithms"].get(name)
        if plan is None or (value := metric_estimate(plan, metric)).mean is None:
            continue
        style = dot_style(standing(plan, metric, band)) | {"markersize": 4.5}
        if value.interval:
            ax.plot([x, x], value.interval, color=style["color"], linewidth=1.2)
        ax.plot([x], [value.mean], **style, gid=f"dot-{number}-{x}", zorder=3)
        means.append((x, value.mean))
    ax.plot(*zip(*means, strict=True), color=PALETTE["muted"], linewidth=0.7, zorder=1)
    ax.grid(axis="y", color=PALETTE["rule"], linewidth=0.6)


def _said(sets: Sequence[Mapping[str, Any]], names: Sequence[str], metric: str) -> str:
    """The panels in words."""
    said = []
    for name in names:
        values = [
            f"{each['level']} {metric_text(metric, metric_estimate(each['algorithms'][name], metric).mean)}"
            for each in sets
            if name in each["algorithms"]
        ]
        said.append(f"{name}: {', '.join(values)}")
    return f"{'; '.join(said)}."


def difference_rows(
    differences: Sequence[Mapping[str, Any]], title: str, quantity: str = "paired difference over seeds"
) -> str:
    """Paired differences with their 95 % intervals, under the claim each speaks to, zero marked.

    differences: those of an experiment's record; quantity: what their intervals measure. A blue dot: the
    interval bears the claim out; a hollow orange diamond: it contradicts it; grey: it includes zero, or
    nothing was claimed. Returns SVG.

    >>> difference_rows([], "Differences")[:4]
    '<svg'
    """
    lines: list[str | Mapping[str, Any]] = []
    for claim in dict.fromkeys(row["claim"] for row in differences):
        lines += [claim or "also measured", *(row for row in differences if row["claim"] == claim)]
    with mpl.rc_context(STYLE):
        figure, ax = titled_axes(0.9 + ROW * max(len(lines), 2), title)
        ax.axvline(0, color=PALETTE["muted"], linewidth=0.8)
        for y, line in enumerate(lines):
            if isinstance(line, str):
                left = blended_transform_factory(figure.transFigure, ax.transData)
                ax.text(
                    0.01, y, line, transform=left, va="center", weight="bold", fontsize=8, in_layout=False
                )
            else:
                _draw_difference(ax, y, line)
        ticks = {y: line["subject"] for y, line in enumerate(lines) if not isinstance(line, str)}
        ax.set_yticks(list(ticks), list(ticks.values()), color=PALETTE["ink"], fontsize=8)
        ax.set_ylim(max(len(lines), 2) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x", color=PALETTE["rule"], linewidth=0.6)
        ax.spines["left"].set_visible(False)
        ax.set_xlabel(quantity)
        said = [f"{row['subject']} {row['interval']['mean']:+.3f} ({row['verdict']})" for row in differences]
        return to_svg(figure, f"{title}: {'; '.join(said)}.")


def _draw_difference(ax: Axes, y: int, row: Mapping[str, Any]) -> None:
    value = estimate(row["interval"])
    assert value.mean is not None, "an interval has a mean"
    style = dot_style(LOOKS.get(row["verdict"]) if row["claim"] else None) | {"markersize": 4.5}
    if value.interval:
        ax.plot(value.interval, [y, y], color=style["color"], linewidth=1.2, solid_capstyle="butt")
    ax.plot([value.mean], [y], **style, gid=f"difference-{y}")
