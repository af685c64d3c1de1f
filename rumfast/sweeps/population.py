"""A population's folder: its spec, and the members that are complete."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rumfast.config import explain
from rumfast.errors import DataError, StorageError
from rumfast.store import (
    commit_folder,
    read_json,
    read_npz,
    require_same,
    write_bytes,
    write_json,
    write_npz,
)
from rumfast.sweeps.records import MemberRecord, load_record, save_record
from rumfast.sweeps.spec import PopulationSpec

# Ending of a member's file, of kinds that keep no model.
RECORDS = {"subsets": ".npz", "trials": ".json", "probes": ".json"}


class Population:
    """One folder with ``spec.json``, a file or folder per complete member, and the workers' journals.

    Members of kind ``subsets`` are records (``members/000123.npz``), ``trials`` and ``probes`` too
    (``members/000123.json``); all others keep the model: ``000/`` with ``model.safetensors``, ``outputs.npz``
    (logits) and ``metrics.json``. Originals have ``proxies.npz`` (scores from their training) besides, and
    ``proxies`` members that and ``metrics.json`` alone.
    """

    def __init__(self, root: Path, spec: PopulationSpec) -> None:
        self.root = root
        self.spec = spec

    @classmethod
    def create(cls, root: Path, spec: PopulationSpec) -> "Population":
        """Make the folder, or reopen it.

        Raises:
            MismatchError: it holds another population; lists the fields that differ.
        """
        root = Path(root)
        if (root / "spec.json").exists():
            stored = cls.open(root).spec
            population = cls.reopen(root, spec)
            if stored != spec:  # workers read where the data is from here, later requests what was deleted
                write_json(root / "spec.json", spec.model_dump(mode="json"))
            return population
        write_json(root / "spec.json", spec.model_dump(mode="json"), replace=False)
        return cls(root, spec)

    @classmethod
    def reopen(cls, root: Path, spec: PopulationSpec) -> "Population":
        """Reopen an existing folder without writing to it; ``spec`` says where the data lies by now.

        Raises:
            MismatchError: it holds another population; lists the fields that differ.
        """
        stored = cls.open(root).spec
        data = spec.data if _same_data(stored, spec) else stored.data
        require_same(root, spec, stored.model_copy(update={"data": data, "requests": spec.requests}))
        return cls(root, spec)

    @classmethod
    def open(cls, root: Path) -> "Population":
        """Reopen an existing folder.

        Raises:
            DataError: no population there, or its spec is damaged.
        """
        path = Path(root) / "spec.json"
        try:
            return cls(Path(root), PopulationSpec.model_validate(read_json(path)))
        except ValidationError as error:
            raise DataError(f"{path}: {explain(error)}") from None

    def member(self, index: int) -> Path:
        """Path of member ``index``; it exists exactly when the member is complete."""
        if self.spec.kind in RECORDS:
            return self.root / "members" / f"{index:06d}{RECORDS[self.spec.kind]}"
        return self.root / f"{index:03d}"

    def done(self, indices: Iterable[int]) -> list[int]:
        """Those of ``indices`` that are complete, by one listing of the folder."""
        complete = self._complete()
        return [index for index in indices if index in complete]

    def complete(self) -> list[int]:
        """All members that are complete, whatever was asked for."""
        return sorted(self._complete())

    def has(self, index: int) -> bool:
        """Is member ``index`` complete?"""
        return self.member(index).exists()

    def _complete(self) -> set[int]:
        folder = self.root / "members" if self.spec.kind in RECORDS else self.root
        try:
            with os.scandir(folder) as entries:
                names = [entry.name.removesuffix(RECORDS.get(self.spec.kind, "")) for entry in entries]
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise StorageError(f"{folder}: cannot be listed: {error.strerror or error}") from error
        return {int(name) for name in names if name.isdecimal()}

    def save_record(self, record: MemberRecord) -> bool:
        """Commit a member of a sweep; False where another worker has committed the same before."""
        return save_record(self.member(record.index), record)

    def record(self, index: int) -> MemberRecord:
        """Read a member of a sweep and check that it belongs here."""
        path = self.member(index)
        try:
            record = load_record(path)
        except DataError as error:
            raise DataError(f"{error}; `rumfast sweep verify --repair` deletes damaged records") from None
        if record.fingerprint != self.spec.data.fingerprint or record.index != index:
            raise DataError(
                f"{path}: record of member {record.index} on data {record.fingerprint[:12]}, expected "
                f"{index} on {self.spec.data.fingerprint[:12]}"
            )
        return record

    def save_trial(self, index: int, outcome: dict[str, Any]) -> bool:
        """Commit a trial; False where another worker has committed the same before."""
        return write_json(self.member(index), outcome, replace=False)

    def trial(self, index: int) -> dict[str, Any]:
        """Read a trial: ``scores`` by name, None where it diverged, and ``examples``."""
        return read_json(self.member(index))

    def save_probe(self, index: int, found: dict[str, Any]) -> bool:
        """Commit what was measured on a model; False where another worker has committed the same before."""
        return write_json(self.member(index), found, replace=False)

    def probe(self, index: int) -> dict[str, Any]:
        """Read it: ``steps``, ``reached`` and ``accuracy`` of relearning; ``entanglement`` (None: ∞)."""
        return read_json(self.member(index))

    def save_model(
        self,
        index: int,
        state: dict[str, Tensor],
        train_NC: np.ndarray,
        test_NC: np.ndarray,
        metrics: dict[str, object],
        proxies: Mapping[str, np.ndarray] | None = None,
    ) -> bool:
        """Commit a model with its logits on all examples; False where another worker has committed it.

        Args:
            proxies: scores [N] by name, from its training.
        """

        def fill(folder: Path) -> None:
            _write_weights(folder / "model.safetensors", state)
            write_npz(folder / "outputs.npz", {"train": train_NC, "test": test_NC})
            write_json(folder / "metrics.json", metrics)
            if proxies is not None:
                write_npz(folder / "proxies.npz", proxies)

        return commit_folder(self.member(index), fill)

    def save_proxies(self, index: int, proxies: Mapping[str, np.ndarray], metrics: dict[str, object]) -> bool:
        """Commit scores [N] by name without a model; False where another worker has committed them."""

        def fill(folder: Path) -> None:
            write_npz(folder / "proxies.npz", proxies)
            write_json(folder / "metrics.json", metrics)

        return commit_folder(self.member(index), fill)

    def state(self, index: int) -> dict[str, Tensor]:
        """Weights of model ``index``.

        Raises:
            DataError: missing or damaged.
        """
        try:
            return _read_weights(self.member(index) / "model.safetensors")[0]
        except DataError as error:
            raise DataError(f"{error}; {self._advice(index)}") from None

    def _checkpoint(self, index: int) -> Path:
        return self.root / f"{index:03d}.step.safetensors"

    def save_checkpoint(self, index: int, state: dict[str, Tensor], done: list[dict[str, Any]]) -> None:
        """Keep model ``index`` between two steps of its plan; ``done`` tells of the steps before."""
        if not self.has(index):  # by another worker: nothing would remove the file then
            note = json.dumps({"spec": self.spec.identity(), "done": done})
            write_bytes(self._checkpoint(index), lambda file: _write_weights(file, state, note), replace=True)

    def checkpoint(self, index: int) -> tuple[dict[str, Tensor], list[dict[str, Any]]] | None:
        """What :func:`save_checkpoint` kept last; None where nothing is, or it is damaged or another plan's.

        To do without costs time, and changes nothing.
        """
        try:
            weights, text = _read_weights(self._checkpoint(index))
        except DataError:
            return None
        note = json.loads(text)
        return (weights, note["done"]) if note["spec"] == self.spec.identity() else None

    def discard_checkpoints(self, indices: Iterable[int]) -> None:
        """Delete the checkpoints of those of ``indices`` that are complete."""
        for index in self.done(indices):
            with suppress(OSError):  # another worker has, just now
                self._checkpoint(index).unlink(missing_ok=True)

    def outputs(self, index: int) -> dict[str, np.ndarray]:
        """Logits of model ``index``: ``train`` [N, C] and ``test`` [N, C]."""
        return self._read(read_npz, index, "outputs.npz")

    def proxies(self, index: int) -> dict[str, np.ndarray]:
        """Scores [N] by name from the training of member ``index``, an original's or of kind ``proxies``."""
        return self._read(read_npz, index, "proxies.npz")

    def metrics(self, index: int) -> dict[str, Any]:
        """What training model ``index`` took: examples, wall_s, loss, steps."""
        return self._read(read_json, index, "metrics.json")

    def _read(self, read: Callable[[Path], dict[str, Any]], index: int, name: str) -> dict[str, Any]:
        try:
            return read(self.member(index) / name)
        except DataError as error:
            raise DataError(f"{error}; {self._advice(index)}") from None

    def _advice(self, index: int) -> str:
        return f"delete the folder {self.member(index)} and run again"


def _same_data(one: PopulationSpec, other: PopulationSpec) -> bool:
    """Is it the same content, wherever it lies?"""
    return one.data == other.data.model_copy(update={"location": one.data.location})


def _write_weights(path: Path, state: dict[str, Tensor], note: str = "") -> None:
    weights = {name: tensor.contiguous() for name, tensor in state.items()}
    metadata = {"sha256": _digest(weights, note)}
    if note:  # not in models: safetensors writes two entries in any order, and their bytes must not vary
        metadata["note"] = note
    path.write_bytes(save(weights, metadata))


def _read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    try:
        with safe_open(path, "pt") as file:
            stored = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot read weights: {error}") from None
    note = stored.get("note", "")
    if stored.get("sha256") != _digest(weights, note):
        raise DataError(f"{path}: damaged: other weights than were stored")
    return weights, note


def _digest(weights: dict[str, Tensor], note: str) -> str:
    """SHA-256 of a note and a model's weights, since safetensors files have no checksum."""
    digest = hashlib.sha256(note.encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
