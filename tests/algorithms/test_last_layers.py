import pytest
import torch

from rumfast.algorithms import ALGORITHMS, SgdConfig
from rumfast.algorithms.last_layers import CfkConfig, EukConfig, split_layers
from rumfast.errors import UsageError
from rumfast.inference import predict
from rumfast.models import build_model

CFK, EUK = ALGORITHMS["cfk"], ALGORITHMS["euk"]
FORGET, RETAIN = torch.arange(200, 300), torch.arange(200)
LEARNING = {1: ("fc",), 2: ("fc", "layer3"), 3: ("fc", "layer3", "layer2")}


@pytest.mark.parametrize("k", LEARNING)
@pytest.mark.parametrize("name", ["cfk", "euk"])
def test_what_is_frozen_ends_bit_identical_and_the_rest_moves(learner, original, name, k):
    config = ALGORITHMS[name].config(lr=0.1, epochs=2, k=k, weight_decay=0.1)
    ALGORITHMS[name].run(learner, FORGET, RETAIN, config, 0)
    before = original.state_dict()
    for key, tensor in learner.model.state_dict().items():
        learning = key.split(".")[0] in LEARNING[k]
        assert torch.equal(tensor, before[key]) != learning, key
    assert all(weight.requires_grad for weight in learner.model.parameters())
    assert not any(module.training for module in learner.model.modules())


@pytest.mark.parametrize("arch, layers", [("resnet8", 5), ("resnet9", 7), ("resnet18", 6), ("resnet50", 6)])
def test_layers_of_each_architecture(arch, layers):
    model = build_model(arch, 10, width=4)
    for k in range(1, layers + 1):
        frozen, learning = split_layers(model, k)
        assert len(learning) == k + (k == layers and arch != "resnet9")  # the stem's convolution and norm
        assert learning[-1] is model.fc and [*frozen, *learning] == list(model.children())
    with pytest.raises(UsageError, match=f"k: got {layers + 1}, but the model has {layers} layers"):
        split_layers(model, layers + 1)


def test_all_layers_are_fine_tuning(learner, original):
    CFK.run(learner, FORGET, RETAIN, CfkConfig(lr=0.05, epochs=2, k=5), 3)
    ours = {key: tensor.clone() for key, tensor in learner.model.state_dict().items()}
    learner.model.load_state_dict(original.state_dict())
    ALGORITHMS["finetune"].run(learner, FORGET, RETAIN, SgdConfig(lr=0.05, epochs=2), 3)
    assert all(torch.equal(ours[key], tensor) for key, tensor in learner.model.state_dict().items())


def test_euk_begins_anew_and_cfk_does_not(learner, original):
    start = original.fc.weight
    CFK.run(learner, FORGET, RETAIN, CfkConfig(lr=0, epochs=1, k=1), 0)
    assert torch.equal(learner.model.fc.weight, start)
    EUK.run(learner, FORGET, RETAIN, EukConfig(lr=0, epochs=1, k=1), 0)
    drawn = learner.model.fc.weight.detach().clone()
    assert (drawn - start).abs().max() > 0.01 and drawn.abs().max() <= 1 / start.shape[1] ** 0.5
    EUK.run(learner, FORGET, RETAIN, EukConfig(lr=0, epochs=1, k=1), 1)
    assert not torch.equal(learner.model.fc.weight, drawn)


def test_new_last_layers_learn_the_retain_set_and_not_what_they_never_see(learner, digits, original, split):
    forget, retain = (torch.from_numpy(ids) for ids in (split.forget, split.retain))
    EUK.run(learner, forget, retain, EukConfig(lr=0.05, epochs=20, k=3), 0)
    before, after = (predict(model, digits).margins().loss for model in (original, learner.model))
    assert after[retain].mean() < before[retain].mean() + 0.05
    assert after[forget].mean() > after[retain].mean() + 0.1
    assert learner.examples == 20 * 230
