import contextlib
import os
import resource
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from rumfast.config import TrainConfig
from rumfast.errors import DataError, MismatchError, StorageError
from rumfast.store import (
    TEMPORARY,
    RunDir,
    commit_folder,
    content_digest,
    read_json,
    read_npz,
    remove_partial,
    require_same,
    write_bytes,
    write_json,
    write_npz,
    write_text,
)

ARRAYS = {
    "a": np.arange(500, dtype=np.int64),
    "b": np.linspace(0, 1, 300).astype(np.float16),
    "c": np.array("text"),
}


def files(folder):
    return sorted(path.name for path in folder.rglob("*"))


def equal(first, second):
    return first.keys() == second.keys() and all(
        np.array_equal(first[k], second[k]) and first[k].dtype == second[k].dtype for k in first
    )


@contextlib.contextmanager
def no_file_larger_than(size):
    """As on a full disk, files open and then cannot be written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_round_trips(tmp_path):
    write_npz(tmp_path / "deep" / "er" / "x.npz", ARRAYS)
    assert equal(read_npz(tmp_path / "deep" / "er" / "x.npz"), ARRAYS)
    write_json(tmp_path / "x.json", {"b": [1, 2.5, None], "a": "ü"})
    assert read_json(tmp_path / "x.json") == {"a": "ü", "b": [1, 2.5, None]}
    write_text(tmp_path / "x.txt", "ü\n")
    assert (tmp_path / "x.txt").read_bytes() == "ü\n".encode()
    assert (tmp_path / "x.txt").stat().st_mode & 0o777 == 0o644
    assert files(tmp_path) == ["deep", "er", "x.json", "x.npz", "x.txt"]


def test_a_writer_that_fails_midway_leaves_nothing(tmp_path):
    def write(path):
        path.write_bytes(b"half")
        raise RuntimeError("midway")

    for replace in (False, True):
        with pytest.raises(RuntimeError, match="midway"):
            write_bytes(tmp_path / "x.bin", write, replace=replace)
    with pytest.raises(RuntimeError, match="midway"):
        commit_folder(tmp_path / "x", lambda folder: write(folder / "file"))
    assert files(tmp_path) == []


def test_json_that_is_not_json_is_never_written(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert read_json(tmp_path / "x.json") == {"a": 1} and files(tmp_path) == ["x.json"]


@pytest.mark.faults
def test_a_disk_that_fills_while_writing(tmp_path):
    noise = np.random.default_rng(0).bytes(100_000)
    with no_file_larger_than(20_000):
        for replace in (False, True):
            with pytest.raises(StorageError, match="x.npz: cannot write: File too large"):
                write_npz(tmp_path / "x.npz", {"noise": np.frombuffer(noise, np.uint8)}, replace=replace)
        with pytest.raises(StorageError, match="folder: cannot write: File too large"):
            commit_folder(tmp_path / "folder", lambda at: (at / "x").write_bytes(noise) and None)
    assert files(tmp_path) == []


def test_a_place_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write: Not a directory|cannot write: File exists"):
        write_text(tmp_path / "file" / "x.txt", "x")
    with pytest.raises(StorageError):
        commit_folder(tmp_path / "file" / "x", lambda at: None)


def test_the_first_writer_wins(tmp_path):
    path = tmp_path / "x.npz"
    write_npz(path, ARRAYS)
    before = path.stat()
    write_npz(path, dict(reversed(ARRAYS.items())))  # the same arrays: no news
    assert path.stat().st_ino == before.st_ino and path.stat().st_mtime_ns == before.st_mtime_ns
    for other in (
        {**ARRAYS, "a": ARRAYS["a"] + 1},
        {**ARRAYS, "d": np.zeros(1)},
        {"a": ARRAYS["a"]},
        {**ARRAYS, "a": ARRAYS["a"].astype(np.int32)},
        {**ARRAYS, "a": ARRAYS["a"].reshape(2, -1)},
    ):
        with pytest.raises(MismatchError, match="x.npz: exists with other content; it was kept"):
            write_npz(path, other)
    assert equal(read_npz(path), ARRAYS) and files(tmp_path) == ["x.npz"]
    write_npz(path, {"a": np.zeros(1)}, replace=True)
    assert list(read_npz(path)) == ["a"]


def test_another_writer_may_commit_while_one_writes(tmp_path):
    def overtaken(content):
        def write(temporary):
            temporary.write_text("ours")
            write_text(tmp_path / "x.txt", content, replace=False)

        return write

    with pytest.raises(MismatchError):
        write_bytes(tmp_path / "x.txt", overtaken("theirs"))
    assert (tmp_path / "x.txt").read_text() == "theirs"
    (tmp_path / "x.txt").unlink()
    write_bytes(tmp_path / "x.txt", overtaken("ours"))
    assert files(tmp_path) == ["x.txt"]


def test_many_writers_at_once_leave_one_file(tmp_path):
    start, results = threading.Barrier(8), []

    def writer(number):
        start.wait()
        try:
            write_text(tmp_path / "x.txt", f"{number % 2}", replace=False)
            results.append((number % 2, True))
        except MismatchError:
            results.append((number % 2, False))

    threads = [threading.Thread(target=writer, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = int((tmp_path / "x.txt").read_text())
    assert sorted(results) == sorted((side, side == winner) for side in [0, 1] * 4)
    assert files(tmp_path) == ["x.txt"]


def test_content_digest_is_of_arrays_for_npz_and_of_bytes_otherwise(tmp_path):
    np.savez(tmp_path / "plain.npz", **ARRAYS)
    write_npz(tmp_path / "packed.npz", ARRAYS)
    assert (tmp_path / "plain.npz").read_bytes() != (tmp_path / "packed.npz").read_bytes()
    assert content_digest(tmp_path / "plain.npz") == content_digest(tmp_path / "packed.npz")
    write_npz(tmp_path / "other.npz", {"b": ARRAYS["a"], "a": ARRAYS["b"], "c": ARRAYS["c"]})
    assert content_digest(tmp_path / "other.npz") != content_digest(tmp_path / "packed.npz")


def test_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{"k": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="x.npz.*allow_pickle"):
        read_npz(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"nonsense", b"\x93NUMPY\x01\x00", b"PK\x05\x06" + bytes(18)]
)
def test_what_is_not_an_npz(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    if content.startswith(b"PK\x05"):  # an archive of nothing
        assert read_npz(tmp_path / "x.npz") == {}
    else:
        with pytest.raises(DataError, match="x.npz: damaged or not an npz file"):
            read_npz(tmp_path / "x.npz")


def test_missing_files_are_said_to_be_missing(tmp_path):
    for read in (read_npz, read_json):
        with pytest.raises(DataError, match="nothing: no such file"):
            read(tmp_path / "nothing")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'"x"', b"3", b"\xff\xfe", b"[" * 100_000, b"{}x", b"null"]
)
def test_what_is_not_a_json_object(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DataError, match="x.json: (not valid JSON|expected a JSON object)"):
        read_json(tmp_path / "x.json")


def test_require_same_lists_every_field_with_both_values(tmp_path):
    config = TrainConfig()
    require_same(tmp_path, config, TrainConfig())
    ours = config.model_copy(update={"lr": 0.2, "milestones": (3,), "width": 8})
    with pytest.raises(MismatchError) as error:
        require_same(tmp_path, ours, config)
    message = str(error.value)
    assert message.startswith(f"{tmp_path}: made with another configuration: ") and "\n" not in message
    for field in ("lr: there 0.1, here 0.2", "milestones: there [], here [3]", "width: there None, here 8"):
        assert field in message
    assert "momentum" not in message


def test_commit_folder_first_wins_and_is_complete(tmp_path):
    path = tmp_path / "in" / "x"
    assert commit_folder(path, lambda at: write_text(at / "file", "first"))
    assert not commit_folder(path, lambda at: write_text(at / "file", "second"))
    assert (path / "file").read_text() == "first" and path.stat().st_mode & 0o777 == 0o755

    def overtaken(at):
        write_text(at / "file", "late")
        commit_folder(tmp_path / "y", lambda other: write_text(other / "file", "early"))

    assert not commit_folder(tmp_path / "y", overtaken)
    assert (tmp_path / "y" / "file").read_text() == "early"
    assert files(tmp_path) == ["file", "file", "in", "x", "y"]


WRITER = """
import sys, time
from pathlib import Path
from rumfast.store import commit_folder, write_bytes
def write(at):
    (at if at.is_file() else at / "file").write_text("half")
    print(at, flush=True)
    time.sleep(60)
{"file": write_bytes, "folder": commit_folder}[sys.argv[1]](Path(sys.argv[2]), write)
"""


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_leftovers_of_the_dead_are_removed_and_work_in_progress_is_not(tmp_path, kind):
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, kind, str(tmp_path / "sub" / "x")], text=True, stdout=subprocess.PIPE
    ) as process:
        temporary = process.stdout.readline().strip()
        remove_partial(tmp_path)
        assert os.path.exists(temporary) and not (tmp_path / "sub" / "x").exists()
        process.kill()
    remove_partial(tmp_path)
    assert files(tmp_path) == ["sub"]


def test_remove_partial_spares_everything_else(tmp_path):
    write_text(tmp_path / "a" / "keep.txt", "x")
    (tmp_path / "a" / (TEMPORARY + "folder")).mkdir()
    (tmp_path / "a" / (TEMPORARY + "folder") / "file").write_text("x")
    (tmp_path / (TEMPORARY + "file.npz")).write_text("x")
    remove_partial(tmp_path)
    assert files(tmp_path) == ["a", "keep.txt"]
    remove_partial(tmp_path / "nowhere")


@pytest.mark.parametrize(("host", "age_s", "stays"), [("elsewhere", 60, True), ("elsewhere", 4000, False)])
def test_leftovers_of_other_hosts_stay_while_they_may_be_at_work(tmp_path, host, age_s, stays):
    """A file system may hide other hosts' locks."""
    leftover = tmp_path / f"{TEMPORARY}{host}-abc.npz"
    leftover.write_text("x")
    os.utime(leftover, (time.time() - age_s,) * 2)
    remove_partial(tmp_path)
    assert leftover.exists() == stays


def test_all_paths_of_a_run_lie_in_it(tmp_path):
    run = RunDir(tmp_path / "r")
    paths = [value for name, value in vars(run).items() if name != "root"] + [run.plan("rum")]
    assert all((tmp_path / "r") in path.parents for path in paths) and len(set(paths)) == len(paths)
