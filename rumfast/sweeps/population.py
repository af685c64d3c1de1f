"""A population's folder: its spec, and the members that are complete."""

import hashlib
import os
from collections.abc import Callable, Iterable
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
from rumfast.store import commit_folder, read_json, read_npz, require_same, write_json, write_npz
from rumfast.sweeps.records import MemberRecord, load_record, save_record
from rumfast.sweeps.spec import PopulationSpec


class Population:
    """One folder with ``spec.json``, a file or folder per complete member, and the workers' journals.

    Members of kind ``subsets`` are records (``members/000123.npz``); all others keep the model:
    ``000/`` with ``model.safetensors``, ``outputs.npz`` (logits) and ``metrics.json``.
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
            moved = stored.model_copy(update={"data": spec.data if _same_data(stored, spec) else stored.data})
            require_same(root, spec, moved)
            if stored != moved:  # workers read where the data is from here
                write_json(root / "spec.json", spec.model_dump(mode="json"))
            return cls(root, spec)
        write_json(root / "spec.json", spec.model_dump(mode="json"), replace=False)
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
        if self.spec.kind == "subsets":
            return self.root / "members" / f"{index:06d}.npz"
        return self.root / f"{index:03d}"

    def done(self, indices: Iterable[int]) -> list[int]:
        """Those of ``indices`` that are complete, by one listing of the folder."""
        complete = self._complete()
        return [index for index in indices if index in complete]

    def has(self, index: int) -> bool:
        """Is member ``index`` complete?"""
        return self.member(index).exists()

    def _complete(self) -> set[int]:
        folder = self.root / "members" if self.spec.kind == "subsets" else self.root
        try:
            with os.scandir(folder) as entries:
                names = [entry.name.removesuffix(".npz") for entry in entries]
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

    def save_model(
        self,
        index: int,
        state: dict[str, Tensor],
        train_NC: np.ndarray,
        test_NC: np.ndarray,
        metrics: dict[str, object],
    ) -> bool:
        """Commit a model with its logits on all examples; False where another worker has committed it."""

        def fill(folder: Path) -> None:
            weights = {name: tensor.contiguous() for name, tensor in state.items()}
            (folder / "model.safetensors").write_bytes(save(weights, {"sha256": _digest(weights)}))
            write_npz(folder / "outputs.npz", {"train": train_NC, "test": test_NC})
            write_json(folder / "metrics.json", metrics)

        return commit_folder(self.member(index), fill)

    def state(self, index: int) -> dict[str, Tensor]:
        """Weights of model ``index``.

        Raises:
            DataError: missing or damaged.
        """
        path = self.member(index) / "model.safetensors"
        try:
            with safe_open(path, "pt") as file:
                stored = file.metadata() or {}
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: cannot read weights: {error}; {self._advice(index)}") from None
        if stored.get("sha256") != _digest(weights):
            raise DataError(f"{path}: damaged: other weights than were stored; {self._advice(index)}")
        return weights

    def outputs(self, index: int) -> dict[str, np.ndarray]:
        """Logits of model ``index``: ``train`` [N, C] and ``test`` [N, C]."""
        return self._read(read_npz, index, "outputs.npz")

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


def _digest(weights: dict[str, Tensor]) -> str:
    """SHA-256 of a model's weights, since safetensors files have no checksum."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
