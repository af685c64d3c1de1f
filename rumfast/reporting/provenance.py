"""How a result was made, as rows of term and value: what a second person needs to make it again."""

from collections.abc import Mapping
from typing import Any

from rumfast.reporting.estimates import MISSING, count_text, finite, seconds_text

Rows = list[tuple[str, str]]


def subtitle(result: Mapping[str, Any]) -> str:
    """One line under the title: what was asked, of how much data.

    >>> subtitle({"dataset": {"name": "digits", "train": 1400}, "forget": {"size": 90, "request": "class:3"}})
    'Forget 90 of 1,400 training examples of digits (request class:3)'
    """
    data, forget = result.get("dataset") or {}, result.get("forget") or {}
    size, train = count_text(forget.get("size")), count_text(data.get("train"))
    source = f" of {data['name']}" if data.get("name") else ""
    request = f" (request {forget['request']})" if forget.get("request") else ""
    return f"Forget {size} of {train} training examples{source}{request}"


def starting_point(result: Mapping[str, Any]) -> tuple[str, str]:
    """The models that plans start from, and how they came about: originals, or earlier requests' result.

    >>> starting_point({"forget": {"earlier": [{"request": "class:3", "size": 143, "plan": "finetune"}]}})
    ('Starting point', 'unlearned before: class:3 (143) by finetune')
    """
    earlier = (result.get("forget") or {}).get("earlier") or []
    if not earlier:
        return "Original", "trained on everything"
    told = [f"{_request(one)} by {one['plan'] or 'a plan not recorded'}" for one in earlier]
    return "Starting point", f"unlearned before: {'; '.join(told)}"


def facts(result: Mapping[str, Any]) -> list[tuple[str, Rows]]:
    """Sections of rows, in the order of the flow; unknown rows and empty sections are left out."""
    sections = [
        ("Data", _data(result.get("dataset") or {})),
        ("Training", [(key, _value(value)) for key, value in (result.get("train") or {}).items()]),
        ("Memorization sweep", _sweep(result.get("sweep") or {})),
        ("Forget set and comparison", _comparison(result)),
        ("Environment", [(key, _value(value)) for key, value in (result.get("environment") or {}).items()]),
    ]
    known = [(title, [(term, text) for term, text in rows if text != MISSING]) for title, rows in sections]
    return [(title, rows) for title, rows in known if rows]


def groups(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """The refinement groups in order: size, mean memorization, and how they lie among the retain set."""
    return [
        {
            "name": str(group.get("name", index)),
            "size": count_text(group.get("size")),
            "memorization": _decimals(group.get("memorization_mean"), 3),
            "entanglement": _decimals(group.get("entanglement"), 1),
            "overlap": _decimals(group.get("neighbour_overlap"), 2),
        }
        for index, group in enumerate((result.get("forget") or {}).get("groups") or [])
    ]


def listings(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Verbatim text: the command, the classes and the resolved configuration."""
    classes = (result.get("dataset") or {}).get("classes") or []
    texts = [
        ("Command", result.get("command")),
        (f"Classes ({len(classes)})", ", ".join(map(str, classes))),
        ("Configuration", result.get("config_toml")),
    ]
    return [(title, str(text).strip("\n")) for title, text in texts if text]


def _data(data: Mapping[str, Any]) -> Rows:
    shape = data.get("shape")
    return [
        ("name", _value(data.get("name"))),
        ("source", _value(data.get("source"))),
        ("training examples", count_text(data.get("train"))),
        ("test examples", count_text(data.get("test"))),
        ("image shape", " × ".join(map(str, shape)) if shape else MISSING),
        ("classes", str(len(data["classes"])) if data.get("classes") else MISSING),
        ("flipped labels", count_text(data.get("flipped"))),
        ("fingerprint", _value(data.get("fingerprint"))),
    ]


def _sweep(sweep: Mapping[str, Any]) -> Rows:
    include, halves = finite(sweep.get("include")), sweep.get("split_half") or {}
    return [
        ("published scores", _value(sweep.get("published"))),
        ("members", count_text(sweep.get("members"))),
        ("share of the data each", MISSING if include is None else f"{100 * include:g}%"),
        ("diverged", count_text(sweep.get("diverged"))),
        ("median standard error", _decimals(sweep.get("median_standard_error"), 3)),
        ("standard error at worst", _decimals(sweep.get("worst_standard_error"), 3)),
        ("standard error found between halves", _decimals(halves.get("standard_error"), 3)),
        ("rank correlation of halves", _decimals(halves.get("spearman"), 3)),
        ("and so expected of the whole", _decimals(halves.get("spearman_whole"), 3)),
        ("wall time", seconds_text(finite(sweep.get("wall_s")))),
    ]


def _comparison(result: Mapping[str, Any]) -> Rows:
    forget = result.get("forget") or {}
    return [
        ("request", _value(forget.get("request"))),
        ("requests before it", _value([_request(one) for one in forget.get("earlier") or []])),
        ("forget set", count_text(forget.get("size"))),
        ("flipped labels in it", count_text(forget.get("flipped"))),
        ("entanglement with the retain set", _decimals(forget.get("entanglement"), 1)),
        ("neighbour overlap with it", _decimals(forget.get("neighbour_overlap"), 2)),
        ("squared MMD to it", _decimals(forget.get("mmd2"), 4)),
        ("mean distance to it", _decimals(forget.get("mean_distance"), 2)),
        ("oracles", count_text(result.get("oracles"))),
        ("seeds per plan", count_text(result.get("seeds"))),
        ("budget per plan, examples", count_text(result.get("budget_examples"))),
        ("retain data of a step", _value(result.get("retain_mode"))),
    ]


def _request(earlier: Mapping[str, Any]) -> str:
    return f"{earlier['request'] or 'not recorded'} ({count_text(earlier['size'])})"


def _value(value: Any) -> str:
    """A configuration value as text: numbers without noise, lists with commas, nothing as a dash."""
    if value is None or value == "":
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value) or MISSING
    return str(value)


def _decimals(value: Any, places: int) -> str:
    number = finite(value)
    return MISSING if number is None else f"{number:.{places}f}"
