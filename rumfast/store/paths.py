"""Where everything of a run lies, and for which recipe."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rumfast.errors import MismatchError


class RunDir:
    """Every path of one run.

    Args:
        base: a run of the same data and recipe, whose data, originals, sweep and scores this one shares.
    """

    def __init__(self, root: str | Path, base: str | Path | None = None) -> None:
        self.root = Path(root)
        shared = self.root if base is None else Path(base)
        self.recipe = self.root / "config.toml"
        self.manifest = self.root / "manifest.json"
        self.data = shared / "data"
        self.original = shared / "original"
        self.sweep = shared / "sweep"
        self.proxies = shared / "proxies"
        self.oracles = self.root / "oracles"
        self.memorization = shared / "scores" / "memorization.npz"
        self.sweep_summary = shared / "scores" / "sweep.json"
        self.distance = shared / "scores" / "distance.npz"
        self.proxy_scores = shared / "scores" / "proxies.npz"
        self.agreement = shared / "scores" / "agreement.json"
        self.windows = self.root / "scores" / "windows.json"
        self.geometry = self.root / "scores" / "geometry.json"
        self.forget = self.root / "forget" / "split.npz"
        self.groups = self.root / "forget" / "groups.npz"
        self.neighbours = self.root / "forget" / "neighbours.npz"
        self.evaluation = self.root / "evaluation" / "summary.json"
        self.timing = self.root / "evaluation" / "timing.json"
        self.report = self.root / "report" / "index.html"
        self.search = self.root / "search"

    def plan(self, name: str) -> Path:
        """Folder of the models that plan ``name`` unlearned."""
        return self.root / "unlearned" / name


def require_same(path: Path, ours: BaseModel, theirs: BaseModel) -> None:
    """Refuse a store made with another configuration.

    Raises:
        MismatchError: lists each field that differs, with both values.
    """
    differences = list(_differences(theirs.model_dump(mode="json"), ours.model_dump(mode="json")))
    if differences:
        raise MismatchError(
            f"{path}: made with another configuration: {'; '.join(differences)}. "
            "Use another --out, or the old recipe"
        )


def _differences(theirs: Any, ours: Any, field: str = "") -> Any:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted(theirs.keys() | ours.keys()):
            yield from _differences(theirs.get(key), ours.get(key), f"{field}.{key}" if field else key)
    elif theirs != ours:
        yield f"{field}: there {str(theirs)[:80]}, here {str(ours)[:80]}"
