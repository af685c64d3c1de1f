import math

import pytest
import torch
import torchvision
from torch import nn

from rumfast.errors import UsageError
from rumfast.models import ARCHITECTURES, BatchNorm, Projection, build_model, initialize_


def images(n=2, size=32, seed=0):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def disturb(model, seed=1):
    """Statistics and affine parameters as training leaves them: not 0 and 1."""
    draw = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.5)


def norms(channels=3):
    """Ours and torch's, with the same parameters and statistics, in train mode."""
    pair = BatchNorm(channels), nn.BatchNorm2d(channels)
    for norm in pair:
        disturb(norm)
    return pair


def test_a_single_value_takes_the_running_statistics_and_leaves_them():
    ours, theirs = norms()
    x = torch.randn(1, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    assert torch.equal(ours(x), theirs.eval()(x))
    assert all(torch.equal(before[name], tensor) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (1, 3, 1, 2), (5, 3, 4, 4)])
def test_more_values_are_normalised_as_torch_does(shape):
    (ours, theirs), x = norms(), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(x), theirs(x))
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)


@pytest.mark.parametrize("arch, parameters", [("resnet18", 11_173_962), ("resnet50", 23_520_842)])
def test_the_big_ones_are_torchvisions(arch, parameters):
    ours = build_model(arch, 10, seed=3)
    disturb(ours)
    theirs = getattr(torchvision.models, arch)(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    assert sum(parameter.numel() for parameter in ours.parameters()) == parameters
    with torch.no_grad():
        torch.testing.assert_close(
            ours.eval()(images(size=16)), theirs.eval()(images(size=16)), rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(
            ours.train()(images(size=16)), theirs.train()(images(size=16)), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("arch, parameters", [("resnet8", 78_042), ("resnet9", 6_573_130)])
def test_sizes_of_the_small_ones_by_hand(arch, parameters):
    assert sum(parameter.numel() for parameter in build_model(arch, 10).parameters()) == parameters


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_logits_are_linear_in_the_embedding(arch):
    model = build_model(arch, 7, width=4).eval()
    disturb(model)
    with torch.no_grad():
        embedding = model.embed(images())
        assert embedding.shape == (2, model.fc.in_features)
        expected = embedding @ model.fc.weight.T + model.fc.bias
        torch.testing.assert_close(model(images()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [8, 32, 64])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_image_sizes(arch, size):
    # The embedding is an average over positions: its width does not depend on the image's.
    model = build_model(arch, 3, width=4).eval()
    with torch.no_grad():
        assert model(images(1, size)).shape == (1, 3) and model(images(1, size)).isfinite().all()


def test_stem_stride_halves_the_grid_and_keeps_the_parameters():
    shapes = []
    for stride in (1, 2):
        model = build_model("resnet18", 10, width=4, stem_stride=stride)
        model.layer1.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape[-2:]))
        model(images())
    assert shapes == [(32, 32), (16, 16)]


def trained(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(2):
        optimizer.zero_grad()
        model.train()(images(4, 8, seed=step)).square().sum().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_redrawing_in_place_equals_building_anew(arch):
    model = trained(build_model(arch, 5, width=4, seed=1))
    pointers = [tensor.data_ptr() for tensor in model.state_dict().values()]
    initialize_(model, 9)
    fresh = build_model(arch, 5, width=4, seed=9).state_dict()
    assert model.state_dict().keys() == fresh.keys()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in model.state_dict().items())
    assert [tensor.data_ptr() for tensor in model.state_dict().values()] == pointers
    other = build_model(arch, 5, width=4, seed=10).state_dict()
    assert not torch.equal(other["fc.weight"], fresh["fc.weight"])


def test_weights_have_the_variance_the_docstring_names():
    model = build_model("resnet18", 10, seed=2)
    conv = model.layer3[0].conv2.weight
    assert conv.std().item() == pytest.approx(math.sqrt(2 / (256 * 9)), rel=0.01)
    assert abs(conv.mean().item()) < 1e-3
    bound = 1 / math.sqrt(512)
    assert 0.98 * bound < model.fc.weight.abs().max().item() <= bound
    assert torch.equal(model.bn1.weight, torch.ones(64)) and torch.equal(
        model.bn1.running_var, torch.ones(64)
    )


def test_building_leaves_the_global_generator_out_of_the_weights():
    torch.manual_seed(0)
    first = build_model("resnet8", 3, width=4)
    torch.manual_seed(1)
    second = build_model("resnet8", 3, width=4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_errors():
    with pytest.raises(
        UsageError, match="arch: got 'resnet34', expected one of resnet8, resnet9, resnet18, resnet50"
    ):
        build_model("resnet34", 10)
    with pytest.raises(UsageError, match="classes: got 1, expected at least 2"):
        build_model("resnet8", 1)


@pytest.mark.parametrize("channels", [1, 4, 7, 8, 12])
def test_a_projection_is_a_strided_convolution(channels):
    """Below 8 channels it takes the pixels first, to the same values and gradients."""
    draw = torch.Generator().manual_seed(0)
    image = torch.randn(3, channels, 7, 8, generator=draw, dtype=torch.float64, requires_grad=True)
    layer = Projection(channels, 2 * channels, 1, 2, bias=False).double()
    weight = layer.weight.detach().clone().requires_grad_()
    expected = torch.einsum("oi,bihw->bohw", weight[:, :, 0, 0], image[:, :, ::2, ::2])
    found = layer(image)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(found.square().sum(), [image, layer.weight]),
        torch.autograd.grad(expected.square().sum(), [image, weight]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
