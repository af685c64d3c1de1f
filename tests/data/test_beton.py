import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from rumfast.data import Examples, beton, layout, read_beton, write_beton
from rumfast.data.writer import WORKER_DIED
from rumfast.errors import DataError, StorageError

EXAMPLES = Examples(
    np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), dtype=np.uint8), np.arange(7, dtype=np.int64)
)


def use_writer(monkeypatch, code):
    monkeypatch.setattr(beton, "WRITER", (sys.executable, "-c", code))


def assert_nothing_kept(folder):
    assert list(Path(folder).iterdir()) == []


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.faults
def test_a_hung_writer_is_killed_with_its_worker(tmp_path, monkeypatch):
    pid_file = tmp_path / "pid"
    out = tmp_path / "out"
    out.mkdir()
    use_writer(
        monkeypatch,
        (
            "import subprocess, time; worker = subprocess.Popen(['sleep', '60']); "
            f"open({str(pid_file)!r}, 'w').write(str(worker.pid)); time.sleep(60)"
        ),
    )
    start = time.perf_counter()
    with pytest.raises(StorageError, match=r"train.beton: the FFCV writer did not finish in 1 s"):
        write_beton(out / "train.beton", EXAMPLES, timeout_s=1)
    assert time.perf_counter() - start < 5 and not alive(int(pid_file.read_text()))
    assert_nothing_kept(out)


@pytest.mark.faults
@pytest.mark.parametrize(
    "code, found",
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "status -9"),
        ("raise RuntimeError('no space')", "status 1: RuntimeError: no space"),
        ("import sys; open(sys.argv[2], 'wb').write(b'x' * 10)", "truncated or corrupt"),
        ("pass", "No such file"),
    ],
)
def test_a_writer_that_fails_leaves_nothing(tmp_path, monkeypatch, code, found):
    use_writer(monkeypatch, code)
    with pytest.raises((StorageError, DataError), match=found) as error:
        write_beton(tmp_path / "train.beton", EXAMPLES)
    assert "train.beton" in str(error.value) and "\n" not in str(error.value)
    assert_nothing_kept(tmp_path)


@pytest.mark.faults
def test_an_older_file_survives_a_failed_write(tmp_path, monkeypatch):
    (tmp_path / "train.beton").write_bytes(b"older")
    use_writer(monkeypatch, "raise SystemExit(3)")
    with pytest.raises(StorageError):
        write_beton(tmp_path / "train.beton", EXAMPLES)
    assert (tmp_path / "train.beton").read_bytes() == b"older"


@pytest.mark.faults
def test_a_full_disk_is_noticed_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(beton.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2 << 20}))
    use_writer(monkeypatch, "raise SystemExit(9)")
    with pytest.raises(StorageError, match="2 MiB are free, writing it needs 9 MiB"):
        write_beton(tmp_path / "train.beton", EXAMPLES)
    assert_nothing_kept(tmp_path)


def test_a_missing_folder_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="train.beton: cannot be written"):
        write_beton(tmp_path / "nowhere" / "train.beton", EXAMPLES)


@pytest.mark.faults
def test_a_failing_worker_of_ffcv_ends_the_writer(tmp_path):
    pytest.importorskip("ffcv")
    np.savez(tmp_path / "a.npz", image_NHWC=np.zeros((3, 4, 4, 3)), label_N=np.arange(3))  # FFCV wants uint8
    command = [*beton.WRITER, str(tmp_path / "a.npz"), str(tmp_path / "a.beton")]
    start = time.perf_counter()
    with pytest.raises(StorageError, match=f"status {WORKER_DIED}"):
        beton._run_writer(tmp_path / "a.beton", command, timeout_s=100)
    assert time.perf_counter() - start < 60


def test_ffcv_reads_what_we_read_and_lays_it_out_as_we_say(packed):
    types = pytest.importorskip("ffcv.types")
    from ffcv.reader import Reader

    torch.set_num_threads(2)
    reader, ours = Reader(str(packed / "train.beton")), layout.read_tables(packed / "train.beton")
    np.testing.assert_array_equal(reader.metadata["f0"]["data_ptr"], ours.offset_N)
    np.testing.assert_array_equal(reader.metadata["f1"], ours.label_N)
    assert (reader.metadata["f0"]["height"] == ours.height).all()
    assert reader.metadata_type.itemsize == layout.SAMPLE.itemsize
    assert types.HeaderType.itemsize == layout.HEADER.itemsize
    assert types.FieldDescType.itemsize == layout.FIELD.itemsize
    assert types.ALLOC_TABLE_TYPE == layout.BLOCK


def write_by_hand(path, image_NHWC, order, gap=0):
    """A beton whose images lie in another order and with gaps, as FFCV with several workers leaves them."""
    n, row = len(image_NHWC), image_NHWC[0].nbytes
    start = layout.HEADER.itemsize + 2 * layout.FIELD.itemsize + n * layout.SAMPLE.itemsize
    sample_N, block_N = np.zeros(n, layout.SAMPLE), np.zeros(n, layout.BLOCK)
    sample_N["mode"], sample_N["height"], sample_N["width"] = 1, *image_NHWC.shape[1:3]
    sample_N["label"] = np.arange(n)
    sample_N["data_ptr"][order] = start + np.arange(n) * (row + gap)
    block_N["sample_id"], block_N["ptr"], block_N["size"] = order, sample_N["data_ptr"][order], row
    fields = np.zeros(2, layout.FIELD)
    fields["type_id"], fields["name"] = zip(*layout.FIELDS, strict=True)
    header = np.array([(2, 2, 1 << 21, n, start + n * (row + gap))], layout.HEADER)
    pixels = b"".join(image_NHWC[k].tobytes() + bytes(gap) for k in order)
    path.write_bytes(header.tobytes() + fields.tobytes() + sample_N.tobytes() + pixels + block_N.tobytes())


@pytest.mark.parametrize("gap", [0, 5])
def test_any_order_of_images_in_the_file_reads_back_by_id(tmp_path, gap):
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(7)
        write_by_hand(tmp_path / "x.beton", EXAMPLES.image_NHWC, order, gap)
        read = read_beton(tmp_path / "x.beton")
        np.testing.assert_array_equal(read.image_NHWC, EXAMPLES.image_NHWC)
        np.testing.assert_array_equal(read.label_N, np.arange(7))


def test_a_header_that_claims_too_much_is_refused_at_once(tmp_path):
    path = tmp_path / "x.beton"
    write_by_hand(path, EXAMPLES.image_NHWC, np.arange(7))
    whole = path.read_bytes()
    for claim in (0, 8, 2**40, 2**63, 2**64 - 1):
        path.write_bytes(whole[:8] + claim.to_bytes(8, "little") + whole[16:])
        with pytest.raises(DataError, match="x.beton: truncated or corrupt"):
            read_beton(path)
    for pointer in (0, 2**63, 2**64 - 1, len(whole) - 10):
        at = layout.HEADER.itemsize + 2 * layout.FIELD.itemsize + 5
        path.write_bytes(whole[:at] + pointer.to_bytes(8, "little") + whole[at + 8 :])
        with pytest.raises(DataError, match="x.beton: truncated or corrupt"):
            read_beton(path)


def test_images_that_share_bytes_are_refused(tmp_path):
    path = tmp_path / "x.beton"
    write_by_hand(path, EXAMPLES.image_NHWC, np.arange(7))
    content = bytearray(path.read_bytes())
    samples = layout.HEADER.itemsize + 2 * layout.FIELD.itemsize
    sample_N = np.frombuffer(content, layout.SAMPLE, 7, samples)
    block_N = np.frombuffer(content, layout.BLOCK, 7, len(content) - 7 * layout.BLOCK.itemsize)
    sample_N["data_ptr"][1] = block_N["ptr"][1] = sample_N["data_ptr"][0] + np.uint64(1)
    path.write_bytes(content)
    with pytest.raises(DataError, match="image pointers leave the file or overlap"):
        read_beton(path)


def test_a_folder_or_nothing_in_place_of_a_beton(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere.beton"):
        with pytest.raises(DataError, match="cannot be read"):
            read_beton(path)
