"""The report's figures, each an inline SVG string: histogram of memorization, metric dots, cost against ToW.

Each reads the ``plans`` of a summary or plain arrays, draws on a `Figure` of its own (no pyplot, no global
state) and gives the same bytes for the same input.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rumfast.errors import UsageError
from rumfast.reporting.axes import (
    dot_style,
    metric_axis,
    name_rows,
    short_name,
    titled_axes,
    write_no_value,
)
from rumfast.reporting.estimates import (
    band_range,
    cost_text,
    estimate,
    finite,
    metric_estimate,
    metric_text,
    place_text,
    range_text,
    standing,
)
from rumfast.reporting.svg import PALETTE, STYLE, to_svg

LEADER = {"arrowstyle": "-", "color": PALETTE["muted"], "linewidth": 0.6}
BIN = 20  # histogram bins per unit of memorization


def memorization_histogram(score_N: Any, forget_mask_N: Any, flipped_mask_N: Any = None) -> str:
    """Distribution of memorization over the training set, the forget set and the flipped labels on top.

    score_N: memorization in [-1, 1]; NaN where it could not be estimated is left out and counted below.
    forget_mask_N, flipped_mask_N: booleans; the second may be None. The axis of counts is logarithmic when
    the tallest bin would hide the rest. Raises UsageError when lengths differ. Returns SVG.

    >>> memorization_histogram([0.0, 0.1, 0.9], [False, False, True]).startswith("<svg")
    True
    """
    score_N = np.asarray(score_N, dtype=float)
    masks = {
        "training set": np.ones(score_N.shape, dtype=bool),
        "forget set": np.asarray(forget_mask_N, bool),
    }
    if flipped_mask_N is not None and np.any(flipped_mask_N):
        masks["flipped labels"] = np.asarray(flipped_mask_N, dtype=bool)
    for name, mask_N in masks.items():
        if mask_N.shape != score_N.shape:
            raise UsageError(f"{name} mask: got shape {mask_N.shape}, expected the scores' {score_N.shape}")
    known_N = np.isfinite(score_N)
    with mpl.rc_context(STYLE):
        figure, ax = titled_axes(3.1, "Memorization over the training set")
        _draw_histograms(ax, {name: score_N[mask_N & known_N] for name, mask_N in masks.items()})
        unknown = int((~known_N).sum())
        note = f"; {unknown:,} without an estimate left out" if unknown else ""
        ax.set_xlabel(f"memorization{note}")
        counts = ", ".join(f"{int((mask_N & known_N).sum()):,} ({name})" for name, mask_N in masks.items())
        return to_svg(figure, f"Histogram of memorization scores: {counts}.")


def metric_bars(
    rows: Sequence[Mapping[str, Any]], metric: str, band: Mapping[str, Any] | None, title: str
) -> str:
    """One dot with its 95 % interval per plan for one metric, the oracle null band shaded behind.

    rows: the summary's ``plans``; metric: a key of their ``metrics``; band: ``{"low", "high"}`` or None. A
    blue dot lies in the band, a hollow orange diamond outside; grey dots are not judged; ticks are seeds.

    >>> metric_bars([{"name": "none", "metrics": {"tow": {"mean": 0.5}}}], "tow", None, "ToW")[:4]
    '<svg'
    """
    limits = band_range(band)
    with mpl.rc_context(STYLE):
        figure, ax = titled_axes(0.95 + 0.27 * max(len(rows), 2), title)
        if limits:
            ax.axvspan(*limits, color=PALETTE["band"], linewidth=1.2, gid="band")
        said = []
        for y, row in enumerate(rows):
            place = standing(row, metric, band)
            _draw_row(ax, y, row, metric, place)
            value = metric_text(metric, metric_estimate(row, metric).mean)
            said.append(f"{row['name']} {value}" + (f" ({place_text(row, metric, place)})" if place else ""))
        name_rows(ax, [row["name"] for row in rows])
        metric_axis(ax, metric)
        where = f"oracles against one another: {range_text(metric, limits)}" if limits else "no oracle band"
        ax.set_xlabel(where)
        return to_svg(figure, f"{title} per plan: {'; '.join(said)}. {where.capitalize()}.")


def cost_scatter(rows: Sequence[Mapping[str, Any]], band: Mapping[str, Any] | None = None) -> str:
    """ToW against cost as a share of retraining, one labelled dot per plan that has both.

    rows: the summary's ``plans``; band: ToW's oracle null band, shaded when given. Returns SVG.

    >>> cost_scatter([{"name": "none", "cost": 0.0, "metrics": {"tow": {"mean": 0.5}}}])[:4]
    '<svg'
    """
    points = []
    for row in rows:
        cost, tow = estimate(row.get("cost")).mean, metric_estimate(row, "tow").mean
        if cost is not None and tow is not None:
            points.append((row, cost, tow))
    limits = band_range(band)
    with mpl.rc_context(STYLE):
        figure, ax = titled_axes(3.1, "ToW against cost")
        if limits:
            ax.axhspan(*limits, color=PALETTE["band"], linewidth=1.2, gid="band")
        ax.axvline(1.0, color=PALETTE["muted"], linewidth=0.8, linestyle=(0, (3, 3)))
        for index, (row, cost, tow) in enumerate(points):
            style = dot_style(standing(row, "tow", band))
            if interval := metric_estimate(row, "tow").interval:
                ax.plot([cost, cost], interval, color=style["color"], linewidth=1.1)
            ax.plot([cost], [tow], **style, gid=f"point-{index}")
        ax.set_xlim(-0.04 * max(1.0, ax.get_xlim()[1]), max(1.12, 1.04 * ax.get_xlim()[1]))
        ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
        ax.set_xlabel("cost, share of retraining (dashed: retraining itself)")
        ax.set_ylabel("ToW")
        ax.grid(color=PALETTE["rule"], linewidth=0.6)
        _label_points(figure, ax, [(short_name(row["name"]), cost, tow) for row, cost, tow in points])
        said = "; ".join(f"{row['name']} {tow:.3f} at {cost_text(cost)}" for row, cost, tow in points)
        return to_svg(figure, f"ToW against cost as a share of retraining: {said}.")


def _draw_histograms(ax: Axes, scores: Mapping[str, np.ndarray]) -> None:
    """Nested histograms: the whole set as a grey area, the forget set over it, flipped labels as a line."""
    everything = scores["training set"]
    lowest = min(0, int(np.floor(BIN * everything.min()))) if everything.size else 0
    edges = [step / BIN for step in range(lowest, BIN + 1)]
    looks: dict[str, dict[str, Any]] = {
        "training set": {"histtype": "stepfilled", "color": PALETTE["base"]},
        "forget set": {"histtype": "stepfilled", "color": PALETTE["in"], "alpha": 0.75},
        "flipped labels": {"histtype": "step", "color": PALETTE["out"], "linewidth": 1.6},
    }
    for name, values in scores.items():
        clipped = np.clip(values, edges[0], edges[-1])
        ax.hist(clipped, bins=edges, label=f"{name} ({values.size:,})", **looks[name])
    count = np.histogram(everything, bins=edges)[0]
    filled = count[count > 0]
    if filled.size and filled.max() > 30 * np.median(filled):
        ax.set_yscale("log")
        ax.set_ylim(0.7, 2.5 * filled.max())
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        ax.minorticks_off()
    ax.set_ylabel("examples")
    ax.grid(axis="y", color=PALETTE["rule"], linewidth=0.6)
    ax.legend(loc="upper right", handlelength=1.2)


def _draw_row(ax: Axes, y: int, row: Mapping[str, Any], metric: str, place: str | None) -> None:
    """A plan's interval, single seeds and mean at height y; a dash when there is no mean."""
    value = metric_estimate(row, metric)
    if value.mean is None:
        write_no_value(ax, y)
        return
    style = dot_style(place)
    if value.interval:
        ax.plot(value.interval, [y, y], color=style["color"], linewidth=1.4, solid_capstyle="butt")
    entry = row["metrics"][metric]
    values = (entry.get("values") or []) if isinstance(entry, Mapping) else []
    seeds = [seed for seed in map(finite, values) if seed is not None]
    if len(seeds) > 1:
        ax.plot(seeds, [y] * len(seeds), linestyle="", marker="|", color=style["color"], alpha=0.6)
    ax.plot([value.mean], [y], **style, gid=f"plan-{y}", clip_on=False)


def _label_points(figure: Figure, ax: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Write each name beside its point, at the nearest place that hits no earlier name and no point.

    A name that had to move further than a line gets a leader; one that fits nowhere is left to the table.
    """
    figure.draw_without_rendering()
    scale = 72.0 / figure.dpi  # pixels to points, the unit of the offsets below
    frame = ax.get_window_extent()
    centres = [scale * ax.transData.transform((x, y)) for _, x, y in points]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in centres]
    for (name, x, y), (left, down) in zip(points, centres, strict=True):
        width = 5.4 * len(name)
        for dx, dy in ((dx, dy) for dy in (0, 11, -11, 22, -22, 33, -33) for dx in (9, -9 - width)):
            box = (left + dx, down + dy - 5, left + dx + width, down + dy + 5)
            free = not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken)
            if free and scale * frame.x0 <= box[0] and box[2] <= scale * frame.x1:
                taken.append(box)
                ax.annotate(
                    name,
                    (x, y),
                    xytext=(dx, dy),
                    textcoords="offset points",
                    va="center",
                    arrowprops=LEADER if abs(dy) > 11 else None,
                )
                break
