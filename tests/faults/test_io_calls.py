"""Fault 2: the k-th call that may fail on a sick disk does fail, for every k, in every kind of commit."""

import builtins
import errno
import io
import os
from collections import Counter

import numpy as np
import pytest
import torch

from rumfast.errors import DataError, StorageError
from rumfast.store import (
    TEMPORARY,
    commit_folder,
    content_digest,
    remove_partial,
    write_json,
    write_npz,
    write_text,
)
from rumfast.sweeps import Population

ARRAYS = {"a": np.arange(500, dtype=np.int64), "b": np.linspace(0, 1, 300).astype(np.float16)}
CONTENT = {"name": "x", "values": [1, 2.5, None]}


class SickDisk:
    """Makes the ``k``-th call that may fail on a sick disk raise ``code``."""

    CALLS = ["open", "fsync", "link", "replace", "rename", "mkdir", "chmod", "unlink", "rmdir"]

    def __init__(self, monkeypatch, k, code):
        self.patch, self.left, self.code, self.hit = monkeypatch, k, code, None

    def __enter__(self):
        for name in self.CALLS:
            self.patch.setattr(os, name, self._failing(f"os.{name}", getattr(os, name)))
        for module in (io, builtins):
            self.patch.setattr(module, "open", self._failing("open", self._open))
        return self

    def count(self, name):
        self.left -= 1
        if self.left == 0:
            self.hit = name
            raise OSError(self.code, os.strerror(self.code))

    def _failing(self, name, function):
        def call(*arguments, **options):
            self.count(name)
            return function(*arguments, **options)

        return call

    def _open(self, file, mode="r", *arguments, original=io.open, **options):
        if "w" not in mode or isinstance(file, int):
            return original(file, mode, *arguments, **options)
        buffered = io.BufferedWriter(SickFile(self, file))
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")

    def __exit__(self, *_):
        self.patch.undo()


class SickFile(io.FileIO):
    """A file whose every write may fail."""

    def __init__(self, disk, file):
        super().__init__(file, "w")
        self.disk = disk

    def write(self, data):
        self.disk.count("write")
        return super().write(data)


def save_model(root, spec):
    state = {"weight": torch.arange(500.0), "steps": torch.tensor(3)}
    model = Population(root, spec.model_copy(update={"kind": "original", "include": None}))
    model.save_model(7, state, np.zeros((9, 2)), np.ones((3, 2)), {"examples": 9})


# What is committed, and under which name.
WRITERS = {
    "json": (lambda root, _: write_json(root / "new" / "x.json", CONTENT), "new/x.json"),
    "json, replaced": (lambda root, _: write_json(root / "old.json", CONTENT), "old.json"),
    "text": (lambda root, _: write_text(root / "x.txt", "text\n" * 9, replace=False), "x.txt"),
    "npz": (lambda root, _: write_npz(root / "new" / "x.npz", ARRAYS), "new/x.npz"),
    "npz, replaced": (lambda root, _: write_npz(root / "old.npz", ARRAYS, replace=True), "old.npz"),
    "npz, again": (lambda root, _: write_npz(root / "same.npz", ARRAYS), "same.npz"),
    "folder": (
        lambda root, _: commit_folder(root / "new", lambda at: write_npz(at / "x.npz", ARRAYS)),
        "new",
    ),
    "model": (save_model, "007"),
    "spec": (Population.create, "spec.json"),
}


def before(root, reference):
    """What is there before the disk falls ill."""
    root.mkdir()
    write_json(root / "old.json", {"before": True})
    write_npz(root / "old.npz", {"before": np.ones(3)})
    write_npz(root / "same.npz", ARRAYS)
    return contents(root)


def contents(root):
    """Digest of every visible file."""
    return {
        str(path.relative_to(root)): content_digest(path)
        for path in sorted(root.rglob("*"))
        if path.is_file() and TEMPORARY not in str(path)
    }


@pytest.mark.faults
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("kind", [*WRITERS, "member"])
def test_each_io_call_may_fail(tmp_path, monkeypatch, reference, kind, code):
    if kind == "member":
        record = reference.record(5)

        def write(root, spec):
            Population(root, spec).save_record(record)

        name = "members/000005.npz"
    else:
        write, name = WRITERS[kind]
    untouched = before(tmp_path / "healthy", reference)
    write(tmp_path / "healthy", reference.spec)
    complete = contents(tmp_path / "healthy")
    assert any(path.startswith(name) for path in complete)
    hits = Counter()
    for k in range(1, 200):
        root = tmp_path / str(k)
        before(root, reference)
        with SickDisk(monkeypatch, k, code) as disk:
            try:
                write(root, reference.spec)
                failed = None
            except (StorageError, DataError) as error:
                failed = error
        if disk.hit is None:
            break
        hits[disk.hit] += 1
        # Whatever calls were lost, either all of it is visible or none.
        assert contents(root) in (untouched, complete)
        assert contents(root) == complete if failed is None else os.strerror(code) in str(failed)
        remove_partial(root)
        assert not list(root.rglob(TEMPORARY + "*"))
        write(root, reference.spec)  # once the disk is well again
        assert contents(root) == complete
    assert disk.hit is None and failed is None, "it never came to an end"
    assert hits["write"] and hits["os.fsync"] >= 2
    assert hits["os.link"] + hits["os.replace"] + hits["os.rename"] >= 1
