from importlib.util import find_spec

import pytest

from rumfast.errors import UsageError
from rumfast.sweeps import LocalEngine, open_engine
from rumfast.sweeps.engines import choice, slurm_cluster


def test_local_engines_by_name():
    assert isinstance(open_engine(device="cpu"), LocalEngine)
    assert open_engine("local", workers=3, device="cpu").workers == 3
    assert open_engine(" local ( workers = 2 ) ", workers=3, device="cpu").workers == 2


@pytest.mark.parametrize(
    "text, expected", [("local", True), ("local(mps=auto)", True), ("local(workers=4, mps=off)", False)]
)
def test_mps_can_be_turned_off(monkeypatch, text, expected):
    given = []
    monkeypatch.setattr(choice, "LocalEngine", lambda *_, mps: given.append(mps))
    open_engine(text, device="cpu")
    assert given == [expected]


def test_flags_and_options_of_sbatch(monkeypatch):
    given = {}
    monkeypatch.setattr(slurm_cluster, "SlurmEngine", lambda device, **options: given.update(options))
    open_engine("slurm(slots=8, minutes=30, gres=gpu:1, exclusive)", device="cuda")
    assert given == {"slots": 8, "minutes": 30, "options": {"gres": "gpu:1", "exclusive": ""}}


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_cluster_engines_by_name():
    assert type(open_engine("ray(address=auto, gpus=0.25)", device="cpu")).__name__ == "RayEngine"


@pytest.mark.parametrize(
    "text, message",
    [
        ("locale", "got 'locale', expected one of local, ray, slurm"),
        ("local(", "got 'local.', expected a name such as slurm"),
        ("", "expected a name"),
        ("local(workers)", "got 'workers' in .*, expected KEY=VALUE"),
        ("local(workers=2, workers=3)", "each key once"),
        ("local(workers=none)", "workers got 'none', expected a number above 0"),
        ("local(workers=0)", "workers got '0', expected a number above 0"),
        ("local(gpus=1)", "local has no option gpus; it has workers, mps"),
        ("local(mps=on)", "mps got 'on', expected auto or off"),
        ("ray(gpu=1)", "ray has no option gpu; it has address, cpus, gpus"),
        ("ray(gpus=-1)", "gpus got '-1'"),
        ("slurm(slots=many)", "slots got 'many'"),
    ],
)
def test_what_cannot_be_meant_is_refused(text, message):
    with pytest.raises(UsageError, match=f"--engine: {message}|--engine: .*{message}"):
        open_engine(text, device="cpu")
