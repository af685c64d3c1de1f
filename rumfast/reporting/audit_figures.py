"""The figures of an audit: findings against their bands, parts of the forget set, margins and ranks."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from rumfast.reporting.audit_text import Record, goal_text, interval_of, number_text
from rumfast.reporting.axes import (
    dot_style,
    metric_axis,
    name_rows,
    tick_text,
    titled_axes,
    titled_panels,
    write_no_value,
)
from rumfast.reporting.estimates import MISSING, band_range, estimate, finite, metric_text
from rumfast.reporting.experiment_figures import difference_rows
from rumfast.reporting.svg import PALETTE, STYLE, to_svg
from rumfast.reporting.verdict import metric_label

COLUMNS = 4
PANEL = 1.15  # inches high
BINS = 24
MOST_LABELS = 10  # names along x of a panel; beyond these every second, third, … is written


def finding_rows(record: Record, metric: str) -> str:
    """One row per model for one audit: value, interval, and the null band that it is held against.

    Blue dot: inside; hollow orange diamond: outside; grey dot: cannot tell; hollow grey dot: inside, but the
    audit has no power. Returns SVG.
    """
    rows, title = record["models"], metric_label(record, metric)
    with mpl.rc_context(STYLE):
        figure, ax = titled_axes(0.8 + 0.27 * max(len(rows), 2), title)
        said = []
        for y, model in enumerate(rows):
            finding = model["findings"].get(metric)
            if finding is None or finite(finding["value"]) is None:
                write_no_value(ax, y)
                continue
            _draw_finding(ax, y, finding, f"{y}", horizontal=True)
            text = number_text(record, metric, finite(finding["value"]))
            said.append(f"{model['name']} {text} ({finding['verdict']})")
        name_rows(ax, [model["name"] for model in rows])
        metric_axis(ax, metric)
        ax.set_xlabel(goal_text(record, metric))
        return to_svg(figure, f"{title} per model: {'; '.join(said)}.")


def _draw_finding(ax: Axes, place: int, finding: Mapping[str, Any], gid: str, *, horizontal: bool) -> None:
    """Band, interval and value of one finding, in row ``place`` or above x = ``place``."""
    value = finite(finding["value"])
    style = dot_style(finding["verdict"]) | {"markersize": 5.5 if horizontal else 4.5}
    across = [place - 0.42, place + 0.42]
    if limits := band_range(finding["null"]):
        fill = ax.fill_betweenx if horizontal else ax.fill_between
        fill(across, *limits, color=PALETTE["band"], linewidth=1.2, zorder=0, gid=f"band-{gid}")
    if interval := interval_of(finding):
        line = (interval, [place, place]) if horizontal else ([place, place], interval)
        ax.plot(*line, color=style["color"], linewidth=1.3, solid_capstyle="butt")
    dot = ([value], [place]) if horizontal else ([place], [value])
    ax.plot(*dot, **style, gid=f"dot-{gid}", zorder=3)


def breakdown_panels(record: Record, by: str) -> str:
    """Forget accuracy of each part of the forget set, against that part's own band; one panel per model.

    by: ``class`` or ``level`` (of memorization). Returns SVG.
    """
    found = {name: parts[by] for name, parts in record["breakdown"].items() if parts.get(by)}
    parts = list(dict.fromkeys(part for model in found.values() for part in model))
    step = math.ceil(len(parts) / MOST_LABELS) if parts else 1
    title = f"Forget accuracy by {'memorization level' if by == 'level' else by}"
    columns = COLUMNS if len(parts) <= COLUMNS else 2
    long = len(parts) > COLUMNS and max(map(len, parts)) > 3
    tilt: Any = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if long else {}
    with mpl.rc_context(STYLE):
        figure, panels = titled_panels(list(found), columns, PANEL, title)
        said = []
        for number, (name, model) in enumerate(found.items()):
            ax = panels[number]
            for x, part in enumerate(parts):
                if part in model and finite(model[part]["value"]) is not None:
                    _draw_finding(ax, x, model[part], f"{number}-{x}", horizontal=False)
            ax.set_xticks(range(0, len(parts), step), parts[::step], **tilt)
            ax.yaxis.set_major_formatter(lambda value, _: tick_text("accuracy", value))
            ax.grid(axis="y", color=PALETTE["rule"], linewidth=0.6)
            values = [
                f"{part} {metric_text('accuracy', finite(one['value']))}" for part, one in model.items()
            ]
            said.append(f"{name}: {', '.join(values)}")
        return to_svg(figure, f"{title}. {'; '.join(said)}.")


def margin_panels(example: Mapping[str, Any]) -> str:
    """Margins of one forgotten example: a grey area of oracles, originals dashed, unlearned models in blue.

    One panel per unlearned population; shares of its models over common bins. Returns SVG.
    """
    margins = {name: np.asarray(values, float) for name, values in example["margins"].items()}
    edges = np.histogram_bin_edges(np.concatenate(list(margins.values())), bins=BINS)
    oracle, original = margins.pop("oracle"), margins.pop("original")
    anchors = {"oracle": oracle, "original": original}
    memorized = finite(example.get("memorization"))
    level = "" if memorized is None else f", memorization {memorized:.2f}"
    title = f"Example {example['id']}, labelled {example['label']}{level}"
    with mpl.rc_context(STYLE):
        figure, panels = titled_panels(list(margins), COLUMNS, 1.0, title)
        for number, values in enumerate(margins.values()):
            ax = panels[number]
            _draw_margins(ax, oracle, edges, f"oracle-{number}", color=PALETTE["base"], fill=True)
            _draw_margins(
                ax, original, edges, f"original-{number}", color=PALETTE["out"], linestyle=(0, (3, 1.5))
            )
            _draw_margins(ax, values, edges, f"unlearned-{number}", color=PALETTE["in"], linewidth=1.3)
            ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
        figure.supxlabel(
            "margin, nats (above zero: classified as labelled)", fontsize=9, color=PALETTE["muted"]
        )
        medians = [f"{name} {np.median(values):.2f}" for name, values in (anchors | margins).items()]
        return to_svg(figure, f"{title}. Median margin, nats: {'; '.join(medians)}.")


def _draw_margins(ax: Axes, values: np.ndarray, edges: np.ndarray, gid: str, **look: Any) -> None:
    share = np.histogram(values, edges)[0] / len(values)
    ax.stairs(share, edges, gid=f"margins-{gid}", **look)


def rank_rows(record: Record, chosen: Sequence[str]) -> str:
    """Kendall's τ of each pair of the chosen audits with its interval, the least agreeing pair first.

    Blue dot: they order the models alike; hollow orange diamond: the other way round; grey: either may be.
    Returns SVG.
    """
    metrics, rows = list(record["ranking"]["metrics"]), []
    for one, other in combinations([metric for metric in chosen if metric in metrics], 2):
        tau = record["ranking"]["tau"][metrics.index(one)][metrics.index(other)]
        if (mean := estimate(tau).mean) is not None:
            rows.append((mean, f"{metric_label(record, one)} and {metric_label(record, other)}", tau))
    claim = "these audits order the models alike"
    differences = [
        {"claim": claim, "subject": subject, "interval": tau, "verdict": agreement(tau)}
        for _, subject, tau in sorted(rows, key=lambda row: row[:2])
    ]
    return difference_rows(differences, "Do audits agree?", "Kendall’s τ between audits over models")


def agreement(tau: Any) -> str:
    """``held`` where the interval of τ lies above zero, ``contradicted`` below, ``undecided`` otherwise.

    >>> agreement({"mean": 0.5, "low": 0.2, "high": 0.8}), agreement({"mean": 0.1, "low": -0.2, "high": 0.4})
    ('held', 'undecided')
    """
    interval = estimate(tau).interval
    if interval is None:
        return "undecided"
    return "held" if interval[0] > 0 else "contradicted" if interval[1] < 0 else "undecided"


def tau_text(tau: Any) -> str:
    """τ with its sign, or a dash.

    >>> tau_text({"mean": 0.5}), tau_text(None)
    ('+0.50', '–')
    """
    mean = estimate(tau).mean
    return MISSING if mean is None else f"{mean:+.2f}"
