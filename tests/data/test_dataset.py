import numpy as np
import pytest

from rumfast.data import Dataset, Examples
from rumfast.data.dataset import channel_stats, check_examples, fingerprint, stratified_ids
from rumfast.errors import DataError, UsageError

CLASSES = ("cat", "dog", "owl")


def arrays(n=30, seed=0, size=4):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8), np.arange(n) % 3


def dataset(n=30, **replaced):
    images, labels = arrays(n)
    test_images, test_labels = arrays(9, seed=1)
    given = dict(
        train_images=images,
        train_labels=labels,
        test_images=test_images,
        test_labels=test_labels,
        classes=CLASSES,
    )
    return Dataset.from_arrays(**{**given, **replaced})


IMAGES, LABELS = arrays()
BAD_DATA = {
    "float images": (dict(train_images=IMAGES / 255), "train images: found dtype float64"),
    "int images": (dict(train_images=IMAGES.astype(int)), "train images: found dtype int64"),
    "channels first": (dict(train_images=IMAGES.transpose(0, 3, 1, 2)), "train images: found shape"),
    "grey": (dict(test_images=IMAGES[..., 0]), "test images: found shape"),
    "not square": (dict(train_images=IMAGES[:, :2]), "train images: found 2x4"),
    "no examples": (dict(train_images=IMAGES[:0], train_labels=LABELS[:0]), "train images: found none"),
    "fewer labels": (dict(train_labels=LABELS[:-1]), "train labels: found shape (29,)"),
    "labels 2-d": (dict(train_labels=LABELS[:, None]), "train labels: found shape (30, 1)"),
    "label -1": (dict(train_labels=LABELS - 1), "train labels: found -1 in row 0, expected 0..2"),
    "label C": (dict(train_labels=LABELS + 1), "train labels: found 3 in row 2, expected 0..2"),
    "float labels": (dict(train_labels=LABELS.astype(float)), "train labels: found dtype float64, expected"),
    "NaN labels": (dict(train_labels=np.full(30, np.nan)), "found dtype float64 with NaN"),
    "bool labels": (dict(train_labels=LABELS > 0), "train labels: found dtype bool"),
    "sizes differ": (dict(test_images=arrays(9, size=8)[0]), "test images: found shape (8, 8, 3)"),
    "one class": (dict(classes=["cat"]), "classes: found 1 distinct of 1"),
    "class twice": (dict(classes=["cat", "dog", "cat"]), "classes: found 2 distinct of 3"),
    "class not text": (dict(classes=[0, 1, 2]), "expected a sequence of strings"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_is_one_line_that_names_split_and_finding(name):
    replaced, message = BAD_DATA[name]
    with pytest.raises(DataError) as error:
        dataset(**replaced)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_one_training_example_is_enough():
    one = dataset(1)
    assert len(one) == 1 and one.image_size == 4 and min(one.std) > 0


def test_labels_of_any_integer_type_become_int64_and_strided_images_contiguous():
    checked = check_examples(Examples(IMAGES[::2], LABELS[::2].astype(np.uint8)), CLASSES, "train")
    assert checked.label_N.dtype == np.int64 and checked.image_NHWC.flags.c_contiguous
    np.testing.assert_array_equal(checked.image_NHWC, IMAGES[::2])


def test_channel_stats_agree_with_float64_over_more_than_one_chunk():
    images = np.random.default_rng(2).integers(0, 256, (5000, 2, 2, 3), dtype=np.uint8)
    mean, std = channel_stats(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-9)
    assert channel_stats(np.full((2, 2, 2, 3), 255, np.uint8)) == ((1.0,) * 3, (1 / 255,) * 3)


def test_fingerprint_changes_with_each_part_of_the_content():
    base = dataset()
    one_pixel, one_label = IMAGES.copy(), LABELS.copy()
    one_pixel[-1, -1, -1, -1] ^= 1
    one_label[0] = 2
    others = [
        dataset(train_images=one_pixel),
        dataset(train_labels=one_label),
        dataset(test_labels=(arrays(9)[1] + 1) % 3),
        dataset(classes=("cat", "owl", "dog")),
        dataset(29),
    ]
    assert base.fingerprint == dataset(name="another name").fingerprint
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 6
    # The shapes count, not only the bytes.
    halves = Examples(IMAGES.reshape(60, 2, 4, 3), np.zeros(60, np.int64))
    wholes = Examples(IMAGES.reshape(60, 4, 2, 3), np.zeros(60, np.int64))
    assert fingerprint(halves, halves, CLASSES) != fingerprint(wholes, wholes, CLASSES)


def test_stratified_ids_hand_worked():
    label_N = np.array([0] * 6 + [1] * 3 + [2] * 1)
    ids = stratified_ids(label_N, 5, seed=0)  # shares 3, 1.5, 0.5: the tie goes to the lower class
    assert np.bincount(label_N[ids], minlength=3).tolist() == [3, 2, 0]
    assert (np.diff(ids) > 0).all()
    assert stratified_ids(label_N, 10, seed=0).tolist() == list(range(10))
    assert any(stratified_ids(label_N, 5, seed).tolist() != ids.tolist() for seed in range(1, 5))


def test_take_keeps_rows_together_and_maps_ids_through_two_takes():
    whole = dataset()
    half = whole.take(15, 3, seed=1)
    third = half.take(6, seed=2)
    assert np.bincount(half.train.label_N).tolist() == [5, 5, 5] and len(half.test) == 3
    assert half.fingerprint != whole.fingerprint and half.mean != whole.mean
    for part in (half, third):
        np.testing.assert_array_equal(part.train.image_NHWC, whole.train.image_NHWC[part.ids])
        np.testing.assert_array_equal(part.train.label_N, whole.train.label_N[part.ids])
    assert whole.take(15, 3, seed=1).fingerprint == half.fingerprint
    assert whole.take().fingerprint == whole.fingerprint


def test_take_may_lose_a_class():
    assert set(dataset().take(2).train.label_N) == {0, 1}


@pytest.mark.parametrize("size", [0, -1, 31])
def test_take_refuses_sizes_outside_the_split(size):
    with pytest.raises(UsageError, match=f"train_examples: found {size}, expected 1..30"):
        dataset().take(size)
