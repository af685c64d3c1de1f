import io
import json
import urllib.error
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rumfast.data import Dataset, load_source
from rumfast.data.sources import SOURCES, dataset_from_source, flip_labels
from rumfast.errors import DataError, UsageError

CIFAR10 = Path(__file__).parents[3] / "shared" / "cifar10"
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 5, 3), dtype=np.uint8)


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def make_folder(root):
    for split, count in (("train", 6), ("test", 4)):
        for k in range(count):
            file = root / split / ("ant", "bee")[k % 2] / f"{k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(IMAGES[k]))
    return root


def make_parquet(root, column="img", label="label", cells=None, metadata=None, labels=(0, 1)):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    root.mkdir(exist_ok=True)
    cells = cells or [{"bytes": png(image), "path": None} for image in IMAGES]
    for split, rows in (("train-0", cells[:4]), ("train-1", cells[4:]), ("validation-0", cells[:2])):
        column_labels = pyarrow.array([labels[k % 2] for k in range(len(rows))], pyarrow.int64())
        table = pyarrow.table({column: rows, label: column_labels})
        parquet.write_table(table.replace_schema_metadata(metadata), root / f"{split}.parquet")
    return root


def test_digits():
    train, test, classes, name = load_source("digits")
    assert (len(train), len(test), name) == (1400, 397, "digits") and classes == tuple("0123456789")
    assert train.image_NHWC.shape[1:] == (8, 8, 3) and train.image_NHWC.max() == 255
    counts = np.bincount(test.label_N)
    assert counts.min() >= 38 and counts.max() <= 41
    both = {image.tobytes() for image in train.image_NHWC} & {image.tobytes() for image in test.image_NHWC}
    assert not both
    again = load_source("digits")[0]
    np.testing.assert_array_equal(again.image_NHWC, train.image_NHWC)


def test_folder(tmp_path):
    train, test, classes, name = load_source(f"folder:{make_folder(tmp_path / 'bugs')}")
    assert (classes, name, len(test)) == (("ant", "bee"), "bugs", 4)
    assert train.label_N.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(train.image_NHWC, IMAGES[[0, 2, 4, 1, 3, 5]])


@pytest.mark.parametrize("content", [b"", b"not an image", png(IMAGES[0])[:60]])
def test_a_corrupt_image_is_named(tmp_path, content):
    root = make_folder(tmp_path)
    (root / "train" / "bee" / "3.png").write_bytes(content)
    with pytest.raises(DataError, match=r"train/bee/3\.png: not a readable image") as error:
        load_source(f"folder:{root}")
    assert "\n" not in str(error.value)


def test_images_of_another_size_are_refused(tmp_path):
    root = make_folder(tmp_path)
    (root / "train" / "bee" / "3.png").write_bytes(png(np.zeros((5, 6, 3), np.uint8)))
    with pytest.raises(DataError, match="is 6x5, expected 5x5"):
        load_source(f"folder:{root}")


def test_folders_that_lack_something(tmp_path):
    with pytest.raises(DataError, match="nowhere: not found"):
        load_source(f"folder:{tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match="train: expected CLASS"):
        load_source(f"folder:{tmp_path}")
    root = make_folder(tmp_path / "bugs")
    (root / "test" / "bee").rename(root / "test" / "cow")
    with pytest.raises(DataError, match=r"differ in the class folders \['bee', 'cow'\]"):
        load_source(f"folder:{root}")


def test_parquet_with_class_names(tmp_path):
    features = {"info": {"features": {"label": {"names": ["ant", "bee"], "_type": "ClassLabel"}}}}
    root = make_parquet(tmp_path / "bugs", metadata={"huggingface": json.dumps(features)})
    train, test, classes, name = load_source(f"parquet:{root}")
    assert (classes, name, len(test)) == (("ant", "bee"), "bugs", 2)
    assert train.label_N.tolist() == [0, 1, 0, 1, 0, 1]
    np.testing.assert_array_equal(train.image_NHWC, IMAGES)


def test_parquet_with_other_column_names_and_no_class_names(tmp_path):
    root = make_parquet(tmp_path / "bugs", column="image", label="fine_label")
    assert load_source(f"parquet:{root}")[2] == ("0", "1")


def test_parquet_that_cannot_be_used(tmp_path):
    cells = [{"bytes": png(image), "path": None} for image in IMAGES]
    cells[5] = {"bytes": b"broken", "path": None}
    with pytest.raises(DataError, match="train-1.parquet row 1: not a readable image"):
        load_source(f"parquet:{make_parquet(tmp_path / 'a', cells=cells)}")
    with pytest.raises(DataError, match="expected img or image"):
        load_source(f"parquet:{make_parquet(tmp_path / 'b', column='picture')}")
    root = make_parquet(tmp_path / "e", labels=[0, None])
    with pytest.raises(DataError, match="train labels: found dtype float64 with NaN"):
        load_source(f"parquet:{root}")
    root = make_parquet(tmp_path / "c")
    (root / "train-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="train-0.parquet: not a readable parquet file"):
        load_source(f"parquet:{root}")
    (tmp_path / "d").mkdir()
    with pytest.raises(DataError, match=r"expected train-\*.parquet"):
        load_source(f"parquet:{tmp_path / 'd'}")


def save_npz(path, **replaced):
    labels = np.arange(6) % 2
    splits = dict(train_images=IMAGES, train_labels=labels, test_images=IMAGES[:2], test_labels=labels[:2])
    arrays = {**splits, **replaced}
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return f"npz:{path}"


def test_npz(tmp_path):
    spec = save_npz(tmp_path / "bugs.npz", classes=np.array(["ant", "bee"]))
    train, _, classes, name = load_source(spec)
    np.testing.assert_array_equal(train.image_NHWC, IMAGES)
    assert (classes, name) == (("ant", "bee"), "bugs")
    assert load_source(save_npz(tmp_path / "x.npz", train_labels=np.arange(6)))[2] == tuple("012345")


def test_npz_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match=r"x.npz: .*missing \['test_images'\]"):
        load_source(save_npz(tmp_path / "x.npz", test_images=None))
    with pytest.raises(DataError, match="x.npz: not a readable npz"):
        load_source(save_npz(tmp_path / "x.npz", train_labels=np.array([{}] * 6, dtype=object)))
    with pytest.raises(DataError, match="train labels: found dtype float64"):
        load_source(save_npz(tmp_path / "x.npz", train_labels=np.full(6, np.nan)))
    with pytest.raises(DataError, match="train labels: found 1000000000000000 in row 5, expected 0..5"):
        load_source(save_npz(tmp_path / "x.npz", train_labels=np.array([0, 1, 0, 1, 0, 10**15])))
    whole = (tmp_path / "x.npz").read_bytes()
    for content in (b"", b"PK\x03\x04", whole[:100], whole[: len(whole) // 2]):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(DataError, match="x.npz"):
            load_source(f"npz:{tmp_path / 'x.npz'}")
    np.save(tmp_path / "x.npy", IMAGES)
    with pytest.raises(DataError, match="x.npy"):
        load_source(f"npz:{tmp_path / 'x.npy'}")


@pytest.mark.parametrize("spec", ["", "imagenet", "digits:3", "folder", "npz:", ":x"])
def test_unknown_specs_list_the_known_ones(spec):
    with pytest.raises(UsageError, match="expected one of digits, cifar10, cifar100, parquet:PATH"):
        load_source(spec)
    assert set(SOURCES) == {"digits", "cifar10", "cifar100", "parquet", "folder", "npz"}


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    from torchvision import datasets

    def fail(self):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("RUMFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.CIFAR10, "download", fail)
    with pytest.raises(DataError, match=r"cifar100: the download into .*cache failed \(.*no network"):
        load_source("cifar100")


@pytest.mark.parametrize("rate, count", [(0.0, 0), (0.1, 30), (0.333, 100), (1.0, 300)])
def test_noise_flips_an_exact_count_and_never_to_the_same_class(rate, count):
    label_N = np.arange(300) % 3
    noisy_N, flipped = flip_labels(label_N, 3, rate, seed=1)
    np.testing.assert_array_equal(flipped, np.flatnonzero(noisy_N != label_N))
    assert len(flipped) == count and noisy_N.min() >= 0 and noisy_N.max() <= 2


def test_noise_is_uniform_over_wrong_classes_and_follows_the_seed():
    label_N = np.full(30_000, 2)
    noisy_N, flipped = flip_labels(label_N, 4, 1.0, seed=0)
    assert len(flipped) == 30_000 and abs(np.bincount(noisy_N, minlength=4)[[0, 1, 3]] - 10_000).max() < 450
    assert not np.array_equal(flip_labels(label_N, 4, 0.5, 1)[1], flip_labels(label_N, 4, 0.5, 2)[1])
    np.testing.assert_array_equal(flip_labels(label_N, 4, 0.5, 1)[0], flip_labels(label_N, 4, 0.5, 1)[0])
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="label noise"):
            flip_labels(label_N, 4, rate, 0)


def test_noise_keeps_the_true_labels_beside():
    clean, noisy = dataset_from_source("digits"), dataset_from_source("digits", 0.2, seed=4)
    assert isinstance(noisy, Dataset) and len(noisy.flipped) == 280 and noisy.fingerprint != clean.fingerprint
    np.testing.assert_array_equal(noisy.clean_label_N, clean.train.label_N)
    np.testing.assert_array_equal(noisy.test.label_N, clean.test.label_N)
    assert clean.clean_label_N is None and len(clean.flipped) == 0


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR10.exists(), reason="needs the images in ../shared/cifar10")
def test_real_cifar10_from_parquet():
    pytest.importorskip("pyarrow")
    train, test, classes, name = load_source(f"parquet:{CIFAR10}")
    assert train.image_NHWC.shape == (50_000, 32, 32, 3) and len(test) == 10_000 and name == "cifar10"
    assert classes[0] == "airplane" and np.bincount(train.label_N).tolist() == [5000] * 10
