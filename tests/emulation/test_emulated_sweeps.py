"""What a worker does on the emulated device: each kind of member, as on the CPU to the last bit."""

import numpy as np
import pytest
import torch

from rumfast.sweeps import Population
from rumfast.sweeps.run import sweep_spec
from rumfast.sweeps.spec import CandidateSpec, GroupSpec, ProbeSpec, SurrogateSpec
from rumfast.sweeps.worker import Worker

FORGET = tuple(range(0, 24, 2))
GROUPS = tuple(GroupSpec(name=name, ids=FORGET[4 * k : 4 * k + 4]) for k, name in enumerate("abc"))
SURROGATE = SurrogateSpec(groups={"thirds": (GroupSpec(name="all", ids=tuple(range(1, 17, 2))),)})
CHILD = {"forget": FORGET, "parent": "../original"}
KINDS = {  # name: fields of its population; parents come first
    "subsets": {"kind": "subsets", "include": 0.7, "margins": "fp32"},
    "events": {"kind": "subsets", "include": 0.7, "margins": "fp32", "events": True},
    "original": {"kind": "original"},
    "oracle": {"kind": "oracle", "forget": FORGET},
    "unlearned": CHILD | {
        "kind": "unlearned", "groups": GROUPS, "plan": "a: none > b: salun(epochs=2) > c: cfk(epochs=2)",
    },
    "trials": CHILD | {
        "kind": "trials", "pairs": 1, "originals": 1, "mia_examples": 20, "surrogates": (SURROGATE,),
        "candidates": (CandidateSpec(steps="finetune(epochs=2)", refine="thirds", retain="remaining"),),
    },
    "probes": CHILD | {"kind": "probes", "probe": ProbeSpec(target=1.0, every=2, most=5)},
    "proxies": {"kind": "proxies"},
}  # fmt: skip
READ = {  # what a member of each kind is
    "original": lambda population: [population.state(0), population.outputs(0), population.proxies(0)],
    "oracle": lambda population: [population.state(0), population.outputs(0)],
    "unlearned": lambda population: [population.state(0), population.outputs(0)],
    "trials": lambda population: [population.trial(0)],
    "probes": lambda population: [population.probe(0)],
    "proxies": lambda population: [population.proxies(0)],
    "subsets": lambda population: [vars(population.record(0))],
}


def made_by(device, few, recipe, root):
    """Members 0 of all populations, by a worker on ``device``, and the checkpoints that it wrote."""
    base = sweep_spec(few, recipe, seed=3, device="cpu").model_copy(update={"include": None})
    worker, found, checkpoints, keep = Worker(device), {}, [], Population.save_checkpoint

    def kept(self, index, state, done):
        checkpoints.append(state)
        keep(self, index, state, done)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Population, "save_checkpoint", kept)
        for name, fields in KINDS.items():
            population = Population.create(root / name, base.model_copy(update=fields))
            assert worker.do(population.root, 0)["status"] == "done"
            found[name] = READ[fields["kind"]](population)
    return found, checkpoints


def test_a_worker_makes_the_same_members(cuda, few, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("rumfast.sweeps.proxy_models.HOLDOUT_EPOCHS", 5)
    there, checkpoints = made_by("cuda", few, recipe, tmp_path / "cuda")
    here, _ = made_by("cpu", few, recipe, tmp_path / "cpu")
    assert there.keys() == here.keys() == KINDS.keys()
    for name in KINDS:
        for one, other in zip(there[name], here[name], strict=True):
            assert one.keys() == other.keys()
            for key in one:
                np.testing.assert_array_equal(one[key], other[key], err_msg=f"{name}: {key}")
    saved = [tensor for state in checkpoints for tensor in state.values()]
    assert saved and all(type(tensor) is torch.Tensor for tensor in saved)


def test_a_bf16_member(cuda, few, recipe, tmp_path):
    """What comes of automatic precision on a GPU, with augmentation and in parts."""
    fields = {"precision": "auto", "flip": True, "crop_padding": 1, "micro_batches": 2}
    spec = sweep_spec(few, recipe.model_copy(update=fields), seed=3, device="cuda", events=True)
    assert spec.precision == "torch.bfloat16"
    population = Population.create(tmp_path / "sweep", spec)
    assert Worker("cuda").do(population.root, 0)["status"] == "done"
    assert np.isfinite(population.record(0).margin_N).all()
