"""The HTML report of one run: a verdict, the table, the figures, examples, and how all of it was made.

One file that opens anywhere, years later and without a network: figures are inline SVG, images are data URIs,
there is no script. The template only lays out; every number in it is prepared here, and autoescaped there.
"""

import base64
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from rumfast.errors import UsageError
from rumfast.reporting import provenance
from rumfast.reporting.estimates import (
    MISSING,
    TONES,
    band_range,
    cost_text,
    count_text,
    estimate,
    finite,
    metric_estimate,
    metric_text,
    place_text,
    range_text,
    seconds_text,
    standing,
)
from rumfast.reporting.figures import cost_scatter, memorization_histogram, metric_bars
from rumfast.reporting.templates import fill_template
from rumfast.reporting.totals import total_section
from rumfast.reporting.verdict import cautions, metric_label, verdict
from rumfast.store import write_bytes

GALLERIES = {
    "most": ("Most memorized", "Right when trained on, mostly wrong when not: the hardest to forget."),
    "least": ("Least memorized", "Right either way: removing them hardly changes the model."),
}


def write_report(path: str | os.PathLike[str], result: Mapping[str, Any], images: Mapping[str, Any]) -> None:
    """Render and put the page at `path`; a reader sees the old file or the whole new one, never a part.

    Raises StorageError when the folder cannot be written.
    """
    content = render(result, images).encode("utf-8")

    def fill(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_bytes(Path(path), fill, replace=True)


def render(result: Mapping[str, Any], images: Mapping[str, Any]) -> str:
    """The whole page as a string; pure, and the same bytes for the same input.

    result: an evaluation summary (schema ``rumfast/evaluation/1``). images: ``most`` and ``least`` (examples
    with a uint8 HWC ``image``), ``neighbours`` (an ``example`` and its ``nearest`` with their ``distance``),
    ``score_N``, ``forget_mask_N`` and ``flipped_mask_N``; any may be missing.
    """
    return fill_template(
        "report.html.j2",
        name=result.get("name") or "unlearning",
        subtitle=provenance.subtitle(result),
        verdict=verdict(result),
        cautions=cautions(result),
        table=_table(result),
        earlier=_earlier(result),
        definitions=_definitions(result),
        spent=total_section(result),
        figures=_figures(result, images),
        galleries=_galleries(images),
        neighbourhoods=_neighbourhoods(images),
        groups=provenance.groups(result),
        facts=provenance.facts(result),
        listings=provenance.listings(result),
        version=(result.get("environment") or {}).get("rumfast") or "",
    )


def _table(result: Mapping[str, Any]) -> dict[str, Any]:
    """Columns and rows of the result table: the oracle band, then plans, then the two reference models."""
    metrics = list(result.get("metrics") or {})
    bands = result.get("bands") or {}
    reference = result.get("reference") or {}
    rows = [_row(result, plan, metrics) for plan in result["plans"]]
    anchors = [
        {
            "name": label,
            "steps": note,
            "cells": [*cells, _plain("", ""), _plain(seconds_text(estimate(values.get("wall_s")).mean), "")],
        }
        for label, note, values, cells in _anchors(result, metrics, reference)
    ]
    spans = [band_range(bands.get(metric)) for metric in metrics]
    return {
        "columns": [metric_label(result, metric) for metric in metrics],
        "band": [range_text(metric, span) or MISSING for metric, span in zip(metrics, spans, strict=True)],
        "rows": rows,
        "anchors": anchors,
    }


def _anchors(
    result: Mapping[str, Any], metrics: list[str], reference: Mapping[str, Any]
) -> list[tuple[str, str, Mapping[str, Any], list[dict[str, Any]]]]:
    """The models that a plan starts from, judged as plans are, and the oracles."""
    bands, found = result.get("bands") or {}, []
    if original := reference.get("original"):
        start = {"metrics": original}
        cells = [_judged_cell(start, metric, bands.get(metric)) for metric in metrics]
        found.append((*provenance.starting_point(result), original, cells))
    if oracle := reference.get("oracle"):
        cells = [_cell(metric, oracle.get(metric)) for metric in metrics]
        found.append(("Oracle", "retrained without the forget set", oracle, cells))
    return found


def _row(result: Mapping[str, Any], plan: Mapping[str, Any], metrics: list[str]) -> dict[str, Any]:
    """One plan: each metric with its place against the band, then cost and wall time."""
    cells = []
    for metric in metrics:
        cells.append(_judged_cell(plan, metric, (result.get("bands") or {}).get(metric)))
    cost, wall = estimate(plan.get("cost")), estimate(plan.get("wall_s"))
    steps = plan.get("steps") or ""
    cells.append(_plain(cost_text(cost.mean), _span(cost_text, cost.interval)))
    cells.append(_plain(seconds_text(wall.mean), _span(seconds_text, wall.interval)))
    return {
        "name": plan["name"],
        "steps": steps if isinstance(steps, str) else " → ".join(map(str, steps)),
        "cells": cells,
    }


def _judged_cell(plan: Mapping[str, Any], metric: str, band: Mapping[str, Any] | None) -> dict[str, Any]:
    """A metric of a plan with its verdict."""
    place = standing(plan, metric, band)
    cell = _cell(metric, (plan.get("metrics") or {}).get(metric))
    return cell | {"place": place_text(plan, metric, place), "tone": TONES.get(place or "", "")}


def _earlier(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One table for each earlier request: what its examples look like to plans, start and oracles."""
    tables = []
    for one in result.get("earlier_requests") or ():
        metrics, bands = list(one["bands"]), one["bands"]
        judged = {"starting point": one["start"], **one["plans"]}
        cells = {
            name: [_judged_cell(row, metric, bands[metric]) for metric in metrics]
            for name, row in judged.items()
        }
        cells["oracles"] = [_cell(metric, bands[metric]["mean"]) for metric in metrics]
        tables.append(
            {
                "title": f"{one['request'] or 'not recorded'}, {count_text(one['size'])} examples",
                "columns": [metric_label(result, metric) for metric in metrics],
                "band": [range_text(metric, band_range(bands[metric])) or MISSING for metric in metrics],
                "rows": [{"name": name, "cells": row} for name, row in cells.items()],
            }
        )
    return tables


def _cell(metric: str, value: Any) -> dict[str, Any]:
    known = estimate(value)
    return _plain(metric_text(metric, known.mean), range_text(metric, known.interval))


def _plain(text: str, interval: str) -> dict[str, Any]:
    return {"text": text, "interval": interval, "place": "", "tone": ""}


def _span(write: Callable[[float], str], interval: tuple[float, float] | None) -> str:
    """An interval of a quantity that cannot be negative; a t-interval over few seeds may reach below zero."""
    return " – ".join(write(max(end, 0.0)) for end in interval or ())


def _definitions(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    metrics = result.get("metrics") or {}
    return [
        (metric_label(result, metric), spec["definition"])
        for metric, spec in metrics.items()
        if (spec or {}).get("definition")
    ]


def _figures(result: Mapping[str, Any], images: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every figure that has something to show, with its caption."""
    plans, bands = result["plans"], result.get("bands") or {}
    figures = [
        {"svg": metric_bars(plans, metric, bands.get(metric), metric_label(result, metric)), "caption": ""}
        for metric in result.get("metrics") or {}
        if any(metric_estimate(plan, metric).mean is not None for plan in plans)
    ]
    priced = [plan for plan in plans if estimate(plan.get("cost")).mean is not None]
    if any(metric_estimate(plan, "tow").mean is not None for plan in priced):
        caption = "The upper left is best: close to the oracle at little cost."
        figures.append({"svg": cost_scatter(priced, bands.get("tow")), "caption": caption})
    score_N, forget_N = images.get("score_N"), images.get("forget_mask_N")
    if score_N is not None and forget_N is not None and np.isfinite(score_N).any():
        svg = memorization_histogram(score_N, forget_N, images.get("flipped_mask_N"))
        caption = (
            "How much more often models trained on an example get it right than models that never saw it."
        )
        figures.append({"svg": svg, "caption": caption})
    return [figure | {"svg": Markup(figure["svg"])} for figure in figures]


def _galleries(images: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The example strips that have at least one image."""
    return [
        {"title": title, "note": note, "examples": [_example(example) for example in images[key]]}
        for key, (title, note) in GALLERIES.items()
        if images.get(key)
    ]


def _neighbourhoods(images: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Forgotten examples, each with the retain examples nearest to it."""
    return [
        {
            "example": _example(row["example"]),
            "nearest": [_example(near) | {"distance": f"{near['distance']:.3g}"} for near in row["nearest"]],
        }
        for row in images.get("neighbours") or ()
    ]


def _example(example: Mapping[str, Any]) -> dict[str, Any]:
    """One image with the words beside it and the words for those who cannot see it."""
    score, error = finite(example.get("score")), finite(example.get("standard_error"))
    clean = example.get("clean_label")
    text = "no estimate" if score is None else f"{score:.2f}" + ("" if error is None else f" ± {error:.2f}")
    flipped = "" if clean is None or clean == example["label"] else f"flipped, was {clean}"
    return {
        "uri": png_uri(example["image"]),
        "alt": f"Training example {example['id']}, labelled {example['label']}",
        "id": example["id"],
        "label": example["label"],
        "score": text,
        "flipped": flipped,
        "forget": bool(example.get("in_forget")),
    }


def png_uri(image: Any) -> str:
    """A uint8 image (HW, HW1 or HW3) as a PNG data URI at its own size; the page scales it up."""
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise UsageError(f"image: got {pixels.dtype} of shape {pixels.shape}, expected uint8 HW, HW1 or HW3")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
