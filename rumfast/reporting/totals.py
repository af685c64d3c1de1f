"""Total of a run in words and as rows, beside one retraining."""

from collections.abc import Mapping
from typing import Any

from rumfast.reporting.estimates import count_text, finite, seconds_text

EXACT = "oracles/000/model.safetensors"
SHARED = "shared with other forget sets"


def total_text(result: Mapping[str, Any]) -> str:
    """One sentence: the models that the run trained, and as how many retrainings they cost; "" if unknown.

    >>> parts = [{"name": "oracles", "models": 5}, {"name": "unlearned models", "models": 1}]
    >>> total_text({"total": {"parts": parts, "retrainings": 5.25, "worker_s": 90.0}})
    'In all, this run trained 5 oracles and 1 unlearned model: 5.2 retrainings (1 min 30 s of worker time).'
    """
    total = result.get("total")
    if not total:
        return ""
    counts = [models_text(part["models"], part["name"]) for part in total["parts"]]
    seconds = finite(total.get("worker_s"))
    time = "" if seconds is None else f" ({seconds_text(seconds)} of worker time)"
    return f"In all, this run trained {listed(counts)}: {retrainings_text(total['retrainings'])}{time}."


def exact_text(result: Mapping[str, Any]) -> str:
    """The exact model's file, and when to use it; "" where the run trained no oracle.

    >>> exact_text({"oracles": 3})[:53]
    "oracles/000/model.safetensors, in this run's folder, "
    """
    if not result.get("oracles"):
        return ""
    return (
        f"{EXACT}, in this run's folder, was trained without the forget set from the start: it is exact. Use "
        "it if one retraining is affordable."
    )


def total_section(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Rows of the report's table: a row for each part, their sum, and one retraining; None if unknown."""
    total = result.get("total")
    if not total:
        return None
    parts = total["parts"]
    oracles = next(part for part in parts if part["name"] == "oracles")
    seconds = finite(oracles.get("worker_s"))
    one = {
        "name": "one retraining",
        "models": 1,
        "examples": total["retraining_examples"],
        "retrainings": 1.0,
        "worker_s": None if seconds is None else seconds / oracles["models"],
    }
    return {
        "rows": [_row(part) for part in parts],
        "total": _row(total | {"name": "in all"}),
        "one": _row(one),
        "exact": exact_text(result),
    }


def _row(part: Mapping[str, Any]) -> dict[str, str]:
    return {
        "name": part["name"],
        "note": SHARED if part.get("shared") else "",
        "models": count_text(part["models"]),
        "examples": count_text(part["examples"]),
        "retrainings": f"{part['retrainings']:.1f}",
        "time": seconds_text(finite(part.get("worker_s"))),
    }


def models_text(count: int, name: str) -> str:
    """A count with its noun, which is plural in ``name``.

    >>> models_text(1, "sweep members"), models_text(64_000, "sweep members")
    ('1 sweep member', '64,000 sweep members')
    """
    return f"{count_text(count)} {name.removesuffix('s') if count == 1 else name}"


def retrainings_text(retrainings: float) -> str:
    """Gradients as multiples of one retraining's.

    >>> retrainings_text(66.04), retrainings_text(1)
    ('66.0 retrainings', '1.0 retraining')
    """
    number = f"{retrainings:.1f}"
    return f"{number} retraining{'' if number == '1.0' else 's'}"


def listed(texts: list[str]) -> str:
    """Texts with commas and a last "and".

    >>> listed(["a", "b", "c"]), listed(["a"])
    ('a, b and c', 'a')
    """
    return " and ".join([part for part in (", ".join(texts[:-1]), texts[-1]) if part])
