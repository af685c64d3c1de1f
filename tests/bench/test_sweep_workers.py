"""Several workers on one device, against one."""

import torch

from rumfast.bench import sweep
from rumfast.bench.setting import Setting
from rumfast.sweeps import LocalEngine


def test_one_engine_at_a_time_is_open(monkeypatch):
    opened, closed = [], []

    class Engine(LocalEngine):
        def __enter__(self):
            assert len(opened) == len(closed)  # two MPS daemons cannot serve one GPU
            opened.append(self.workers)
            return super().__enter__()

        def __exit__(self, *error):
            closed.append(self.workers)
            super().__exit__(*error)

    monkeypatch.setattr(sweep, "LocalEngine", Engine)
    monkeypatch.setattr(sweep, "engine_sweeps", lambda *_: lambda: [0.5])
    (found,) = sweep.by_workers(Setting(torch.device("cpu"), True, 1.0, {"float32": 1.0}), rounds=2)
    assert opened == closed == [1, 2]
    assert found["rounds"] == 2 and list(found["peers"]) == [f"{sweep.OWN}2 workers"]
