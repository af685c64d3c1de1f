"""On CUDA the device is timed, not the host: shown with a stream that only counts."""

import pytest
import torch

from rumfast.bench import timing
from rumfast.bench.timing import SLEEP_MS, SLEEP_TRIAL, take_turns

CYCLES_PER_MS = 2e6
LAUNCH_S, KERNEL_MS = 0.0002, 0.05


class Stream:
    """A CUDA stream emulated: launches take the host's time, work waits in line for the device's."""

    def __init__(self, monkeypatch):
        self.host_ms, self.free_at_ms, self.log = 0.0, 0.0, []
        stream = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                stream.log.append("event")
                self.at_ms = stream.work(0.0)

            def elapsed_time(self, stop):
                return stop.at_ms - self.at_ms

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "_sleep", self.sleep)
        monkeypatch.setattr(torch.cuda, "synchronize", self.synchronize)
        monkeypatch.setattr(timing.torch, "empty", lambda *shape, **options: self)
        monkeypatch.setattr(timing, "perf_counter", lambda: self.host_ms / 1000)

    def work(self, ms):
        """Queue work; returns when it ends."""
        self.free_at_ms = max(self.free_at_ms, self.host_ms) + ms
        return self.free_at_ms

    def sleep(self, cycles):
        self.log.append("sleep")
        self.work(cycles / CYCLES_PER_MS)

    def synchronize(self, device):
        self.log.append("synchronize")
        self.host_ms = max(self.host_ms, self.free_at_ms)

    def zero_(self):
        self.log.append("flush")
        self.work(0.1)

    def call(self):
        """A call of two kernels, of which Python takes longer to launch each than the device to run it."""
        self.log.append("call")
        for _ in range(2):
            self.host_ms += 1000 * LAUNCH_S
            self.work(KERNEL_MS)


@pytest.fixture
def stream(monkeypatch):
    return Stream(monkeypatch)


def test_the_stream_sleeps_while_the_host_launches(stream):
    timed = take_turns({"ours": stream.call}, 2, torch.device("cuda"), warmup=0)
    assert stream.log[-7:] == ["synchronize", "flush", "sleep", "event", "call", "event", "synchronize"]
    assert timed.ms["ours"] == pytest.approx([2 * KERNEL_MS] * 2)
    assert timed.host_us["ours"] == pytest.approx([2e6 * LAUNCH_S] * 2)


def test_without_sleep_the_host_would_be_timed(stream, monkeypatch):
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: stream.work(SLEEP_TRIAL * 1e-9))
    timed = take_turns({"ours": stream.call}, 1, torch.device("cuda"), warmup=0)
    assert timed.ms["ours"][0] > 2 * KERNEL_MS


def test_sleep_is_measured_in_cycles_of_this_device(stream):
    assert timing._cycles(SLEEP_MS, torch.device("cuda")) == SLEEP_MS * CYCLES_PER_MS


def test_on_a_cpu_the_wall_clock_tells_all(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(timing, "perf_counter", lambda: next(clock))
    timed = take_turns({"ours": lambda: None}, 1, torch.device("cpu"), warmup=0)
    assert timed.ms == {"ours": [1000.0]} and timed.host_us == {}
