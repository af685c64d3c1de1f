import json
import random
import time

import numpy as np
import pytest

from rumfast.data import dataset_info, load_dataset, load_source, pack, packing, verify_dataset
from rumfast.data.layout import dump_record, read_record
from rumfast.errors import DataError, MismatchError, StorageError, UsageError

FILES = ("train.beton", "test.beton", "dataset.json")


def assert_refused(packed, name):
    start = time.perf_counter()
    with pytest.raises(DataError, match=name) as error:
        load_dataset(packed)
    assert time.perf_counter() - start < 5 and "\n" not in str(error.value)


def test_round_trip(packed, npz_file):
    data = load_dataset(packed)
    train, test, classes, name = load_source(f"npz:{npz_file}")
    np.testing.assert_array_equal(data.train.image_NHWC, train.image_NHWC)
    np.testing.assert_array_equal(data.clean_label_N, train.label_N)
    np.testing.assert_array_equal(data.flipped, np.flatnonzero(data.train.label_N != train.label_N))
    np.testing.assert_array_equal(data.test.image_NHWC, test.image_NHWC)
    np.testing.assert_array_equal(data.test.label_N, test.label_N)
    assert (data.name, data.classes, data.location) == (name, classes, str(packed))
    assert len(data.flipped) == 5


def test_loading_and_computing_agree(packed, npz_file):
    loaded, computed = load_dataset(packed), packing.dataset_from_source(f"npz:{npz_file}", 0.1, 3)
    assert loaded.fingerprint == computed.fingerprint
    assert (loaded.mean, loaded.std) == (computed.mean, computed.std)


@pytest.mark.slow
def test_the_same_source_packs_to_the_same_bytes(packed, npz_file, tmp_path):
    again = pack(f"npz:{npz_file}", tmp_path / "again", label_noise=0.1, seed=3)
    assert again.fingerprint == load_dataset(packed).fingerprint
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (packed / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == sorted(FILES)


def test_an_existing_pack_is_kept_or_refused(packed, npz_file, monkeypatch):
    monkeypatch.setattr(packing, "write_beton", None)  # nothing may be written
    assert pack(f"npz:{npz_file}", packed, label_noise=0.1, seed=3).location == str(packed)
    with pytest.raises(MismatchError, match="choose another --out") as error:
        pack(f"npz:{npz_file}", packed, label_noise=0.1, seed=4)
    assert error.value.exit_code == 3 and str(packed) in str(error.value)


@pytest.mark.faults
@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_caught(packed, name):
    whole = (packed / name).read_bytes()
    rng = random.Random(0)
    for size in [0, 1, 23, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(296))]:
        (packed / name).write_bytes(whole[:size])
        assert_refused(packed, name)
    (packed / name).unlink()
    assert_refused(packed, name)


@pytest.mark.faults
@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_caught(packed, name):
    whole = (packed / name).read_bytes()
    rng = random.Random(1)
    # Some flips hit the header and tables, which are a thousandth of the file.
    ends = [*range(0, 24, 2), *(len(whole) - k for k in range(1, 19))]
    for position in [*ends, *(rng.randrange(len(whole)) for _ in range(270))]:
        damaged = bytearray(whole)
        damaged[position % len(whole)] ^= 1 << rng.randrange(8)
        (packed / name).write_bytes(damaged)
        assert_refused(packed, name)


@pytest.mark.faults
def test_content_is_compared_without_verify_too(packed):
    file = packed / "test.beton"
    damaged = bytearray(file.read_bytes())
    damaged[1 << 21] ^= 1  # the first pixel: data starts with the second page
    file.write_bytes(damaged)
    with pytest.raises(DataError, match="test.beton: content differs"):
        load_dataset(packed, verify=False)


def test_an_edited_record_is_refused(packed):
    record = json.loads((packed / "dataset.json").read_text())
    record["mean"][0] = 0.5
    (packed / "dataset.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    assert_refused(packed, "dataset.json")


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "[" * 100_000, '{"schema": "rumfast.dataset/1"}'])
def test_a_record_that_is_no_record_is_refused(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    assert_refused(tmp_path, "dataset.json")


def test_a_record_of_another_schema_is_refused(tmp_path):
    (tmp_path / "dataset.json").write_bytes(dump_record({"schema": "rumfast.dataset/9"}))
    with pytest.raises(DataError, match="not of schema rumfast.dataset/1"):
        read_record(tmp_path)


def test_a_missing_pack_says_how_to_make_one(tmp_path):
    with pytest.raises(DataError, match="rumfast data pack SOURCE --out"):
        load_dataset(tmp_path / "nowhere")


def test_info_and_verify(packed):
    info = dataset_info(packed)
    assert info["counts"] == {"train": 50, "test": 12} and info["shape"] == [4, 4, 3] and info["flipped"] == 5
    assert info["bytes"]["train"] == (packed / "train.beton").stat().st_size
    checked = verify_dataset(packed)
    assert (checked["train"], checked["test"], checked["fingerprint"]) == (50, 12, info["fingerprint"])
    json.dumps([info, checked])
    (packed / "test.beton").unlink()
    with pytest.raises(DataError, match="test.beton: not found"):
        dataset_info(packed)


def test_a_source_loads_without_packing(npz_file, monkeypatch):
    monkeypatch.chdir(npz_file.parent)
    data = load_dataset(f"npz:{npz_file.name}")
    assert data.location == f"npz:{npz_file}" and len(data) == 50
    assert load_dataset("digits").location == "digits"


def test_a_subset_of_a_loaded_dataset_can_be_loaded_again(packed):
    part = load_dataset(packed).take(20, 6, seed=2)
    again = load_dataset(part.location).take(*part.taken)
    assert again.fingerprint == part.fingerprint
    whole = load_dataset(packed)
    np.testing.assert_array_equal(part.ids[part.flipped], np.intersect1d(whole.flipped, part.ids))
    np.testing.assert_array_equal(part.clean_label_N, whole.clean_label_N[part.ids])
    assert part.take(10).location is None


def test_out_that_cannot_be_a_directory(npz_file, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be made a directory"):
        pack(f"npz:{npz_file}", tmp_path / "file" / "out")


def test_without_ffcv_packing_names_the_install_line(npz_file, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"apt-get install g[+][+] .*libopencv-dev .*pip install ffcv"):
        pack(f"npz:{npz_file}", tmp_path / "out")
    assert not (tmp_path / "out").exists()
