import gc
import sys
import threading
import time

import numpy as np
import pytest
import torch

pytest.importorskip("ffcv")

from rumfast.data import Examples, write_beton  # noqa: E402
from rumfast.errors import DataError, UsageError  # noqa: E402
from rumfast.loaders import ResidentLoader, StreamingLoader, batch_bounds  # noqa: E402
from rumfast.loaders.streaming import _decoded  # noqa: E402

EXAMPLES = Examples(
    np.random.default_rng(0).integers(0, 256, (41, 6, 6, 3), dtype=np.uint8),
    np.random.default_rng(1).integers(0, 10, 41),
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPTIONS = dict(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), device="cpu", seed=6, flip=True, crop_padding=2)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("beton") / "train.beton"
    write_beton(path, EXAMPLES)
    return path


@pytest.fixture(scope="module", params=[1, 4, 8, 41, 100])
def pair(request, file):
    """Both loaders at one batch size; 41 mod 4 = 41 mod 8 = 1."""
    options = dict(OPTIONS, batch_size=request.param)
    return StreamingLoader(file, **options), ResidentLoader(EXAMPLES, **options)


def assert_same_batches(streamed, resident):
    for ours, theirs in zip(streamed, resident, strict=True):
        for left, right in zip(ours, theirs, strict=True):
            assert torch.equal(left, right) and left.dtype == right.dtype
        assert ours.image.stride() == theirs.image.stride()


def test_streams_the_batches_of_the_resident_loader(pair):
    streamed, resident = pair
    for epoch in range(2):
        assert_same_batches(streamed.epoch(epoch=epoch), resident.epoch(epoch=epoch))
    # Fewer ids than before, more than before, one, in order, another seed.
    for ids in (range(9), [40, 0, 17], range(40), [5]):
        assert_same_batches(streamed.epoch(ids, shuffle=False), resident.epoch(ids, shuffle=False))
        assert_same_batches(streamed.epoch(ids, 3, seed=9), resident.epoch(ids, 3, seed=9))


@pytest.fixture(scope="module")
def loader(file):
    return StreamingLoader(file, **OPTIONS, batch_size=4)


def test_kept_batches_do_not_change(loader):
    batches = list(loader.epoch(shuffle=False))
    copies = [batch.image.clone() for batch in loader.epoch(shuffle=False)]
    assert all(torch.equal(batch.image, copy) for batch, copy in zip(batches, copies, strict=True))


@pytest.mark.gpu
def test_a_buffer_is_not_filled_again_before_its_batch_is_used(file):
    """Also where a GPU lags behind, which is given long waits here."""
    options = dict(OPTIONS, device=DEVICE, batch_size=4)
    streamed, resident = StreamingLoader(file, **options), ResidentLoader(EXAMPLES, **options)
    kept = []
    for batch in streamed.epoch():
        if DEVICE == "cuda":
            torch.cuda._sleep(10_000_000)  # cycles
        kept.append(type(batch)(*(tensor * 1 for tensor in batch)))
    assert_same_batches(kept, resident.epoch())


@pytest.mark.gpu
def test_batches_are_decoded_into_memory_pinned_for_a_gpu(file):
    loader = StreamingLoader(file, **OPTIONS | dict(device=DEVICE), batch_size=4)
    batches = _decoded(loader._ffcv, np.arange(41), batch_bounds(41, 4), file)
    assert [torch.from_numpy(batch).is_pinned() for batch in batches] == [DEVICE == "cuda"] * 11


def test_an_early_break_leaks_no_thread_and_ends_at_once(loader):
    before = threading.active_count()
    for taken in (0, 1, 5, 10):
        start, batches = time.perf_counter(), loader.epoch()
        for _ in range(taken):
            next(batches)
        batches.close()
        assert threading.active_count() == before and time.perf_counter() - start < 2
    for _ in loader.epoch():
        break
    gc.collect()
    assert threading.active_count() == before


def test_an_exception_in_the_loop_leaks_no_thread(loader):
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        for _ in loader.epoch():
            raise ZeroDivisionError
    gc.collect()
    assert threading.active_count() == before


def test_interleaved_epochs_do_not_disturb_each_other(loader):
    first, second = loader.epoch(shuffle=False), loader.epoch(range(12, 41), shuffle=False)
    drawn = [(next(first).id, next(second).id) for _ in range(7)]
    left, right = (torch.cat(ids).tolist() for ids in zip(*drawn, strict=True))
    assert left == list(range(len(left))) and right == list(range(12, 12 + len(right)))
    first.close()
    second.close()


def test_the_thread_count_of_torch_is_left_alone(file):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        loader = StreamingLoader(file, **OPTIONS, batch_size=4)
        assert torch.get_num_threads() == 2
        for _ in loader.epoch():
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_decoder_that_dies_is_an_error_and_no_hang(loader, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    original = loader._ffcv.code
    loader._ffcv.code = ([(lambda **arguments: 1 / 0, [0])], [0])
    try:
        with pytest.raises(DataError, match="train.beton: decoding stopped"):
            next(loader.epoch())
    finally:
        loader._ffcv.code = original
    assert len(list(loader.epoch())) == 11


def test_bad_ids_and_options(loader, file):
    for ids in ([], [1, 1], [41], [-1], np.ones(41, bool)):
        with pytest.raises(DataError, match="^ids: found"):
            loader.epoch(ids)
    for workers in (0, 10_000):
        with pytest.raises(UsageError, match=f"num_workers: found {workers}"):
            StreamingLoader(file, **OPTIONS, batch_size=4, num_workers=workers)


@pytest.mark.faults
def test_a_truncated_file_is_refused(file, tmp_path):
    (tmp_path / "cut.beton").write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="cut.beton: truncated or corrupt"):
        StreamingLoader(tmp_path / "cut.beton", **OPTIONS, batch_size=4)


def test_without_ffcv_the_install_line_is_named(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "ffcv.loader", None)
    with pytest.raises(UsageError, match=r"pip install ffcv"):
        StreamingLoader(file, **OPTIONS, batch_size=4)
