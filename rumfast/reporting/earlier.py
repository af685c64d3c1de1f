"""Earlier requests in words: which plans leave them forgotten."""

from collections.abc import Mapping
from typing import Any

from rumfast.reporting.estimates import count_text

SAID = {
    "matches": "still forgotten after",
    "cannot tell": "cannot tell of",
    "differs": "not forgotten after",
}


def earlier_text(result: Mapping[str, Any]) -> list[str]:
    """For each earlier request, which plans leave it forgotten, which do not, and of which one cannot tell.

    >>> plans = {"a": {"verdict": "matches", "metrics": {}}, "b": {"verdict": "cannot tell", "metrics": {}}}
    >>> earlier_text({"earlier_requests": [{"request": "class:3", "size": 60, "plans": plans}]})
    ['The earlier request (class:3, 60 examples): still forgotten after “a”; cannot tell of “b”.']
    """
    sentences = []
    for one in result.get("earlier_requests") or ():
        found: dict[str, list[str]] = {}
        for name, judged in one["plans"].items():
            found.setdefault(_state(judged), []).append(f"“{name}”")
        parts = [f"{text} {', '.join(found[state])}" for state, text in SAID.items() if state in found]
        asked = f"{one['request'] or 'not recorded'}, {count_text(one['size'])} examples"
        sentences.append(f"The earlier request ({asked}): {'; '.join(parts)}.")
    return sentences


def _state(judged: Mapping[str, Any]) -> str:
    """The verdict, where to have forgotten too much is to have forgotten."""
    outside = [entry for entry in judged["metrics"].values() if entry["verdict"] == "outside"]
    over = bool(outside) and all(entry["over_forgotten"] for entry in outside)
    return "matches" if over else str(judged["verdict"])
