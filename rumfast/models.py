"""ResNets for small images: logits, and the penultimate embedding they are linear in.

``resnet18`` and ``resnet50`` are torchvision's networks with the 3×3, stride-1 stem and no max-pool that the
field uses on 32×32 and 64×64 images; parameter names are torchvision's, so weights move both ways.
``resnet8`` is the 6n+2 network of He et al. (2016, section 4.2) with n = 1; ``resnet9`` is the DAWNBench
network of Page (2018).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d

from rumfast.errors import UsageError
from rumfast.runtime import generator


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that takes a channel of a single value, one image of one pixel, by its running statistics.

    Its own variance does not exist there, and torch refuses it in train mode.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.shape[0] * x.shape[2] * x.shape[3] > 1:
            return super().forward(x)
        return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def _conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> tuple[nn.Conv2d, BatchNorm]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return conv, BatchNorm(outputs)


class Projection(nn.Conv2d):
    """A 1×1 convolution of every ``stride``-th pixel.

    oneDNN's strided weight gradient writes past its memory on CPUs with AVX2 alone where there are fewer than
    8 input channels (torch 2.14: 4 to 8 channels, 8×8 pixels, stride 2); taking the pixels first avoids it.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.in_channels >= 8 or not x.is_cpu:
            return super().forward(x)
        rows, columns = self.stride
        return conv2d(x[:, :, ::rows, ::columns], self.weight)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(Projection(inputs, outputs, 1, stride, bias=False), BatchNorm(outputs))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv_bn(inputs, width, 3, stride)
        self.conv2, self.bn2 = _conv_bn(width, width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1×1, 3×3 (which carries the stride), 1×1 beside a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv_bn(inputs, width, 1)
        self.conv2, self.bn2 = _conv_bn(width, width, 3, stride)
        self.conv3, self.bn3 = _conv_bn(width, 4 * width, 1)
        self.downsample = _shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Classifier(nn.Module):
    """A network whose logits are linear in its embedding: ``forward(x) = fc(embed(x))``."""

    fc: nn.Linear

    def embed(self, x: Tensor) -> Tensor:
        """Penultimate embeddings [B, D] of images [B, 3, H, W]: the global average pool's output."""
        raise AssertionError("each architecture defines its own embedding")

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] of images [B, 3, H, W]."""
        return self.fc(self.embed(x))


class ResNet(Classifier):
    """A stem, then stages of blocks, each stage but the first halving the image and doubling the channels."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, ...],
        width: int,
        stem_stride: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv_bn(3, width, 3, stem_stride)
        self.stages = len(depths)
        channels = width
        for stage, depth in enumerate(depths):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(channels, width << stage, stride))
                channels = (width << stage) * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, classes)

    def embed(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return x.mean((2, 3))


class ResNet9(Classifier):
    """Eight convolutions, two pairs of them residual: made to train fast."""

    def __init__(self, width: int, stem_stride: int, classes: int) -> None:
        super().__init__()
        self.stem = _conv_bn_relu(3, width, stem_stride)
        self.layer1 = nn.Sequential(_conv_bn_relu(width, 2 * width), nn.MaxPool2d(2))
        self.residual1 = nn.Sequential(
            _conv_bn_relu(2 * width, 2 * width), _conv_bn_relu(2 * width, 2 * width)
        )
        self.layer2 = nn.Sequential(_conv_bn_relu(2 * width, 4 * width), nn.MaxPool2d(2))
        self.layer3 = nn.Sequential(_conv_bn_relu(4 * width, 8 * width), nn.MaxPool2d(2))
        self.residual3 = nn.Sequential(
            _conv_bn_relu(8 * width, 8 * width), _conv_bn_relu(8 * width, 8 * width)
        )
        self.fc = nn.Linear(8 * width, classes)

    def embed(self, x: Tensor) -> Tensor:
        x = self.layer1(self.stem(x))
        x = self.layer2(x + self.residual1(x))
        x = self.layer3(x)
        return (x + self.residual3(x)).mean((2, 3))


def _conv_bn_relu(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(*_conv_bn(inputs, outputs, 3, stride), nn.ReLU())


# name → (stem channels, builder from width, stem stride and classes)
ARCHITECTURES: dict[str, tuple[int, Callable[[int, int, int], Classifier]]] = {
    "resnet8": (16, lambda width, stride, classes: ResNet(BasicBlock, (1, 1, 1), width, stride, classes)),
    "resnet9": (64, ResNet9),
    "resnet18": (64, lambda width, stride, classes: ResNet(BasicBlock, (2, 2, 2, 2), width, stride, classes)),
    "resnet50": (64, lambda width, stride, classes: ResNet(Bottleneck, (3, 4, 6, 3), width, stride, classes)),
}


def build_model(
    arch: str, classes: int, *, width: int | None = None, stem_stride: int = 1, seed: int = 0
) -> Classifier:
    """Build an architecture with weights drawn from ``seed`` (see :func:`initialize_`).

    >>> build_model("resnet8", classes=10)(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 10])

    Raises:
        UsageError: unknown architecture, or fewer than two classes.
    """
    if arch not in ARCHITECTURES:
        raise UsageError(f"arch: got {arch!r}, expected one of {', '.join(ARCHITECTURES)}")
    if classes < 2:
        raise UsageError(f"classes: got {classes}, expected at least 2")
    default_width, build = ARCHITECTURES[arch]
    model = build(width or default_width, stem_stride, classes)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    initialize_(model, seed)
    return model


@torch.no_grad()
def initialize_(model: nn.Module, seed: int) -> None:
    """Redraw all weights in place from ``seed``: a pure function of (architecture, seed) on every device.

    Convolutions are normal with variance 2 / fan-out (He et al., 2015), linear layers uniform in ±1/√fan-in,
    batch norms identity. In place, because a compiled step keeps pointing at the same tensors.
    """
    draw = generator("weights", seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            weight = torch.empty(module.weight.shape).normal_(0, math.sqrt(2 / fan_out), generator=draw)
            module.weight.copy_(weight)
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            for parameter in (module.weight, module.bias):
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=draw))
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.weight.fill_(1)
            module.bias.zero_()
