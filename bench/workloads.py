"""What kernels are measured on: random inputs of the sizes that matter, and the peers of each case."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rumfast.bench import peers
from rumfast.bench.setting import Setting
from rumfast.kernels.augment import augment
from rumfast.kernels.crops import draws, key
from rumfast.kernels.linear_margins import linear_margins
from rumfast.kernels.margins import margins
from rumfast.kernels.neighbours import nearest
from rumfast.kernels.pairwise import mean_distance, mean_squared_distance, rbf_mean
from rumfast.scores import entanglement_score

Function = Callable[..., Any]  # inputs → a tensor, a number, or a tuple of tensors
Inputs = tuple[Tensor, ...]
Draw = Callable[[Setting, torch.Generator], Inputs]
Shape = tuple[int, ...]
CONFIDENT = 4.0  # standard deviation of logits, at which some examples are as confident as memorized ones
APART = 0.1  # between the means of two sets of points, in each coordinate
SEED, EPOCH = 0, 0  # of crops and flips


def bytes_of(*tensors: Tensor) -> int:
    """What tensors hold."""
    return sum(tensor.nbytes for tensor in tensors)


class Kernel(NamedTuple):
    """A kernel with its peers, all functions of the same inputs.

    Attributes:
        inputs: draws random inputs for a setting.
        compiled: the peer that torch.compile gets as well, if any.
        exact: the formula that float64 inputs are put through for the truth.
        dtype: of the numbers that come in, or of those that go out.
        read: bytes that have to be read.
        flop: operations of the matrix products that have to be made, in ``product``.
    """

    inputs: Draw
    ours: Function
    peers: Mapping[str, Function]
    compiled: Function | None
    exact: Function
    dtype: str = "float32"
    read: Callable[..., int] = bytes_of
    flop: Callable[..., int] = lambda *inputs: 0
    product: str = "float32"


def normal(draw: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers, drawn where they are used."""
    return torch.randn(shape, generator=draw, device=draw.device)


def logits(*shapes: Shape) -> Draw:
    """Logits [N, C] or [M, N, C] and labels [N]; shapes as for ``Setting.size``."""

    def inputs(setting: Setting, draw: torch.Generator) -> Inputs:
        shape = setting.size(*shapes)
        return CONFIDENT * normal(draw, *shape), _labels(draw, *shape[-2:])

    return inputs


def layer(*shapes: Shape) -> Draw:
    """Embeddings [N, D], weight [C, D], bias [C] and labels [N]; shapes [N, D, C] as for ``Setting.size``."""

    def inputs(setting: Setting, draw: torch.Generator) -> Inputs:
        count, width, classes = setting.size(*shapes)
        weight_CD = normal(draw, classes, width) * (CONFIDENT / width**0.5)
        return normal(draw, count, width), weight_CD, normal(draw, classes), _labels(draw, count, classes)

    return inputs


def _labels(draw: torch.Generator, count: int, classes: int) -> Tensor:
    return torch.randint(classes, (count,), generator=draw, device=draw.device)


def points(*shapes: Shape) -> Draw:
    """Points [N, D], or two sets [N, D] and [M, D] whose means differ; shapes [N, (M,) D]."""

    def inputs(setting: Setting, draw: torch.Generator) -> Inputs:
        *counts, width = setting.size(*shapes)
        return tuple(normal(draw, count, width) + APART * index for index, count in enumerate(counts))

    return inputs


def images(crop: bool, *shapes: Shape) -> Draw:
    """A resident set, a batch's ids, and the crops and flips that ours draws for them; shapes [N, B]."""

    def inputs(setting: Setting, draw: torch.Generator) -> Inputs:
        count, batch = setting.size(*shapes)
        image_NHWC = torch.randint(
            256, (count, 32, 32, 3), dtype=torch.uint8, generator=draw, device=draw.device
        )
        id_B = torch.randperm(count, generator=draw, device=draw.device)[:batch]
        return image_NHWC, id_B, *draws(id_B, *key(SEED, EPOCH), crop, crop * peers.PADDING)

    return inputs


def _margin(inputs: Draw) -> Kernel:
    formulas = {"eager TRAK": peers.masked_margin, "eager softmax": peers.softmax_margin}
    return Kernel(
        inputs, partial(margins, outputs=("margin",)), formulas, peers.masked_margin, peers.masked_margin
    )


def _all_outputs(inputs: Draw) -> Kernel:
    formulas = {"eager TRAK": peers.masked_margins, "eager softmax": peers.softmax_margins}
    return Kernel(inputs, margins, formulas, peers.masked_margins, peers.masked_margins)


def _linear_margin(inputs: Draw) -> Kernel:
    formula = peers.linear_masked_margin
    return Kernel(
        inputs,
        partial(linear_margins, outputs=("margin",)),
        {"eager linear, TRAK": formula},
        formula,
        formula,
        flop=lambda x_ND, weight_CD, *rest: 2 * x_ND.numel() * len(weight_CD),
    )


def _crops(inputs: Draw, dtype: torch.dtype, *, crop: bool = True) -> Kernel:
    def ours(image_NHWC: Tensor, id_B: Tensor, *drawn: Tensor) -> Tensor:
        return augment(
            image_NHWC,
            id_B,
            seed=SEED,
            epoch=EPOCH,
            flip=crop,
            crop_padding=crop * peers.PADDING,
            mean=peers.MEAN,
            std=peers.STD,
            dtype=dtype,
        )

    gather = peers.gathered_crops if crop else peers.plain_images
    formulas: dict[str, Function] = {"eager gather": gather}
    if crop:
        formulas["airbench"] = peers.shifted_crops
    if crop and find_spec("torchvision"):
        formulas["torchvision by image"] = peers.single_crops
    return Kernel(
        inputs,
        ours,
        {name: partial(formula, dtype=dtype) for name, formula in formulas.items()},
        partial(gather, dtype=dtype),
        partial(gather, dtype=torch.float64),
        str(dtype).removeprefix("torch."),
        read=lambda image_NHWC, id_B, *draws: len(id_B) * image_NHWC[0].nbytes + id_B.nbytes,
    )


def pair_flop(x_ND: Tensor, y_MD: Tensor | None = None) -> int:
    """Operations of the products of all pairs; within one set, of each pair once."""
    return x_ND.numel() * (len(x_ND) if y_MD is None else 2 * len(y_MD))


FORGET_RETAIN = points((300, 470, 512), (3_000, 4_700, 512), (3_000, 47_000, 512))
MEAN_DISTANCE = Kernel(
    FORGET_RETAIN,
    mean_distance,
    {"torch.cdist": peers.cdist_mean, "cdist in blocks": peers.cdist_in_rows},
    peers.expanded_mean,
    peers.cdist_in_rows,
    flop=pair_flop,
)
FAST = partial(mean_distance, precision="fast")
ONE_SET = points((512, 512), (4096, 512), (50_000, 512))
LARGE = points((3_000, 3_000, 16), (50_000, 50_000, 16), (50_000, 50_000, 512))
BATCHES = (2_000, 128), (10_000, 1024), (50_000, 8192)

CASES: dict[str, Kernel] = {
    "margins C=10": _margin(logits((20_000, 10), (200_000, 10), (50_000, 10))),
    "margins C=100": _margin(logits((10_000, 100), (200_000, 100), (50_000, 100))),
    "margins C=1000": _margin(logits((1_000, 1000), (20_000, 1000), (50_000, 1000))),
    "margins C=131072": _margin(logits((4, 131_072), (64, 131_072), (8192, 131_072))),
    "margins of members": _margin(logits((4, 5_000, 10), (8, 50_000, 10), (64, 50_000, 10)))._replace(
        peers={"eager TRAK": peers.margin_of_members, "eager TRAK by member": peers.margin_by_member},
        compiled=peers.margin_of_members,
        exact=peers.margin_of_members,
    ),
    "margins C=10, all outputs": _all_outputs(logits((10_000, 10), (200_000, 10), (50_000, 10))),
    "margins C=100, all outputs": _all_outputs(logits((5_000, 100), (200_000, 100), (50_000, 100))),
    "linear_margins C=10": _linear_margin(layer((2_000, 512, 10), (50_000, 512, 10), (50_000, 512, 10))),
    "linear_margins C=100": _linear_margin(layer((2_000, 512, 100), (50_000, 512, 100), (50_000, 512, 100))),
    "linear_margins, many classes": _linear_margin(
        layer((32, 512, 8192), (1024, 512, 32_768), (8192, 512, 131_072))
    ),
    "mean distance": MEAN_DISTANCE,
    "mean distance, fast": MEAN_DISTANCE._replace(ours=FAST, product="bfloat16"),
    "mean distance in one set": MEAN_DISTANCE._replace(inputs=ONE_SET),
    "mean distance in one set, fast": MEAN_DISTANCE._replace(inputs=ONE_SET, ours=FAST, product="bfloat16"),
    "mean distance of large sets": MEAN_DISTANCE._replace(
        inputs=LARGE, peers={"torch.cdist": peers.cdist_mean}, compiled=None
    ),
    "mean squared distance": Kernel(
        FORGET_RETAIN,
        mean_squared_distance,
        {"torch.cdist": peers.cdist_squared, "norms and one product": peers.expanded_squared},
        peers.expanded_squared,
        partial(peers.mean_in_rows, peers.cdist_squared),
    ),
    "RBF means, 5 bandwidths": Kernel(
        FORGET_RETAIN,
        partial(rbf_mean, bandwidths=peers.BANDWIDTHS),
        {"torch.cdist": peers.cdist_rbf},
        peers.cdist_rbf,
        partial(peers.mean_in_rows, peers.cdist_rbf),
        flop=pair_flop,
    ),
    "nearest 10": Kernel(
        FORGET_RETAIN,
        partial(nearest, k=peers.NEIGHBOURS),
        {"torch.cdist, topk": peers.cdist_neighbours, "scikit-learn": peers.sklearn_neighbours},
        None,
        peers.neighbours_in_rows,
        flop=pair_flop,
    ),
    "entanglement": Kernel(
        points((7_680, 512, 512), (45_000, 3_000, 512), (45_000, 3_000, 512)),
        entanglement_score,
        {
            "two passes over batches": peers.batched_entanglement,
            "eager on whole sets": peers.whole_entanglement,
        },
        peers.whole_entanglement,
        peers.whole_entanglement,
    ),
    "augment": _crops(images(True, *BATCHES), torch.float32),
    "augment to bfloat16": _crops(images(True, *BATCHES), torch.bfloat16),
    "normalise": _crops(images(False, *BATCHES), torch.float32, crop=False),
}
