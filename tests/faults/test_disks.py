"""Fault 7: a disk that is full, on a real file system of 2 MB, and one that is read-only."""

import os
import shutil
import subprocess
import time

import numpy as np
import pytest

from rumfast import run_sweep
from rumfast.config import load_recipe
from rumfast.errors import StorageError
from rumfast.pipeline.stages import Run
from rumfast.store import TEMPORARY, content_digest
from rumfast.sweeps import LocalEngine, Population, load_sweep
from rumfast.sweeps.worker import Worker

PAGE = 4096  # bytes; a tmpfs hands out whole pages


@pytest.fixture
def disk(tmp_path):
    """A mounted file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "rumfast-test", folder]).returncode:
        refused = "mounting a tmpfs is not permitted here (it takes root, and CAP_SYS_ADMIN in a container)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(refused)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def leave(disk, size):
    """Fill the disk but for ``size`` bytes, in place of what filled it before."""
    (disk / "ballast").unlink(missing_ok=True)
    with open(disk / "ballast", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(shutil.disk_usage(disk).free - size, 1))


def whole(out, reference):
    """Whatever is visible is complete; returns the number of models and members."""
    assert not list(out.rglob(TEMPORARY + "*"))
    found = [*out.glob("sweep/members/*"), *out.glob("original/*/model.safetensors")]
    for path in found:
        assert content_digest(path) == content_digest(reference / path.relative_to(out))
    for folder in out.glob("original/[0-9]*"):
        names = {path.name for path in folder.iterdir()}
        assert names == {"model.safetensors", "outputs.npz", "metrics.json", "proxies.npz"}
    return len(found)


@pytest.fixture
def unbroken(tmp_path, recipe_file, rumfast):
    """The run as it is where there is room."""
    out, worker = tmp_path / "unbroken", Worker("cpu")
    run = Run(load_recipe(recipe_file), out, LocalEngine(1, "cpu"), "cpu")
    run.pack()
    for population, members in ((run.originals, 2), (run.sweep_population, 6)):
        for index in range(members):
            worker.do(population.root, index)
    assert rumfast("score", "--out", out, "--device", "cpu").code == 0
    return out


@pytest.mark.faults
@pytest.mark.slow
def test_a_full_disk_ends_with_exit_5_and_freed_it_resumes_to_the_same(disk, unbroken, recipe_file, rumfast):
    command = ("score", recipe_file, "--out", disk / "run", "--workers", 1, "--device", "cpu")
    model = sum(-(-path.stat().st_size // PAGE) for path in (unbroken / "original/000").iterdir())
    kept = []
    for pages in (0, model + 10, model + 6):  # full at once, after one of two originals, within the sweep
        leave(disk, pages * PAGE)
        outcome = rumfast(*command)
        assert outcome.code == 5 and "No space left on device" in outcome.stderr, outcome.stderr
        assert "Traceback" not in outcome.stderr and str(disk) in outcome.stderr
        kept.append(whole(disk / "run", unbroken))
    assert kept[:2] == [0, 1] and 2 < kept[2] < 8, kept
    (disk / "ballast").unlink()
    assert rumfast(*command).code == 0
    assert whole(disk / "run", unbroken) == 8
    scores = "scores/memorization.npz"
    assert content_digest(disk / "run" / scores) == content_digest(unbroken / scores)


@pytest.mark.faults
def test_a_read_only_store_fails_at_once(disk, data, recipe, spec, reference, recipe_file, rumfast):
    shutil.copytree(reference.root, disk / "sweep")
    for index in range(3, 60):
        (disk / "sweep" / "members" / f"{index:06d}.npz").unlink()
    (disk / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    before = sorted(disk.rglob("*"))
    started = time.monotonic()
    with pytest.raises(StorageError, match="Read-only file system"):
        run_sweep(data, recipe, members=6, seed=3, out=disk / "sweep", device="cpu", workers=1)
    assert time.monotonic() - started < 5
    for command in (("run",), ("sweep", "run"), ("sweep", "plan")):
        started = time.monotonic()
        outcome = rumfast(*command, recipe_file, "--out", disk / "run", "--device", "cpu")
        assert time.monotonic() - started < 5
        assert outcome.code == 5 and "Read-only file system" in outcome.stderr, outcome.stderr
    assert sorted(disk.rglob("*")) == before
    # Nothing is missing: nothing needs to be written.
    found = run_sweep(data, recipe, members=3, seed=3, out=disk / "sweep", device="cpu", workers=1)
    assert (found.margin_MN == load_sweep(reference, range(3)).margin_MN).all()


@pytest.mark.faults
def test_compacting_on_a_full_disk_is_an_io_error_and_keeps_the_old_cache(disk, reference):
    shutil.copytree(reference.root, disk / "sweep")
    population = Population.open(disk / "sweep")
    load_sweep(population, range(3)).compact()
    leave(disk, 3 * PAGE)  # mapped files are sparse: without care, writing to them would be a bus error
    with pytest.raises(StorageError, match="compact: cannot write: No space left on device"):
        load_sweep(population, range(60)).compact()
    assert isinstance(load_sweep(population, range(3)).include_MN, np.memmap)
    assert not list(disk.rglob(TEMPORARY + "*"))
    (disk / "ballast").unlink()
    load_sweep(population, range(60)).compact()
    found, expected = load_sweep(population, range(60)).margin_MN, load_sweep(reference, range(60)).margin_MN
    np.testing.assert_array_equal(found, expected)
