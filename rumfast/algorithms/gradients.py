"""Gradients of the cross-entropy in eval mode: summed over a set, or of each example alone."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from rumfast.runtime import exact_float32
from rumfast.stepping import split
from rumfast.training import Learner

# Numbers in one block of gradients: about what a core's cache holds; on a GPU two gigabytes, 48 examples of
# ResNet-18, since fewer leave it idle.
CPU_BLOCK, GPU_BLOCK = 2**20, 2**29


def gradient_sum(learner: Learner, ids: Tensor) -> list[Tensor]:
    """Σ ∇CE over ``ids``, one tensor per parameter, in the recipe's precision."""
    learner.model.eval()
    learner.model.zero_grad()
    for batch in learner.loader.epoch(ids, 0, shuffle=False):
        with exact_float32():
            for part in split(batch, learner.config.micro_batches):
                cross_entropy(learner.logits(part.image), part.label, reduction="sum").backward()
        learner.examples += len(batch.id)
    gradients = [parameter.grad for parameter in learner.model.parameters() if parameter.grad is not None]
    learner.model.zero_grad()
    return gradients


def example_gradients(learner: Learner, ids: Tensor) -> Iterator[Tensor]:
    """∇CE of each of ``ids``, in their order, as blocks [b, P] in float32; P counts all weights."""
    model = learner.model.eval()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, (weights, buffers), (image[None],))
        return cross_entropy(logits, label[None])

    each = vmap(grad(loss), (None, 0, 0))
    numbers = CPU_BLOCK if learner.device.type == "cpu" else GPU_BLOCK
    block = max(1, numbers // weight_count(learner))
    for batch in learner.loader.epoch(ids, 0, shuffle=False):
        learner.examples += len(batch.id)
        for image, label in zip(batch.image.split(block), batch.label.split(block), strict=True):
            with exact_float32():
                found = each(weights, image, label)
            yield torch.cat([one.flatten(1) for one in found.values()], 1)


def weight_count(learner: Learner) -> int:
    """P: the number of weights of the model."""
    return sum(parameter.numel() for parameter in learner.model.parameters())


def per_parameter(learner: Learner, flat_P: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each parameter with its part of a vector over all weights, in the parameter's shape."""
    parameters = list(learner.model.parameters())
    parts = flat_P.split([parameter.numel() for parameter in parameters])
    return ((parameter, part.view_as(parameter)) for parameter, part in zip(parameters, parts, strict=True))
