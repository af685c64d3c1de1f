"""What kernels are held against: their formulas as others write them, on [N, C] logits or [N, D] points.

All of them run on float64 too, where they are the truth that errors are taken from.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, pad

from rumfast.kernels.margins import Margins

BATCH = 256  # examples per batch of the research code's loaders
ROWS = 1024  # of a matrix of distances, where it is made in blocks
NEIGHBOURS = 10
# 512 standard normal coordinates lie 32 apart. σ² doubles, as in the usual sums of kernels for an MMD.
BANDWIDTHS = tuple(32.0 * 2 ** (power / 2) for power in range(-2, 3))
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)  # of CIFAR-10, rounded
PADDING = 4  # pixels around a 32×32 image before it is cropped


def masked_margin(logits_NC: Tensor, label_N: Tensor) -> Tensor:
    """Margin as TRAK (``modelout_functions.py``) has it: clone the logits, −∞ at the label, logsumexp."""
    row_N = torch.arange(len(label_N), device=label_N.device)
    own = logits_NC[row_N, label_N]
    others = logits_NC.clone()
    others[row_N, label_N] = -torch.inf
    return own - others.logsumexp(1)


def softmax_margin(logits_NC: Tensor, label_N: Tensor) -> Tensor:
    """Margin as logit(p_y) of the full softmax, as membership inference code has it (Carlini et al. 2022)."""
    confidence = logits_NC.softmax(1).gather(1, label_N.unsqueeze(1)).squeeze(1)
    return confidence.logit(eps=torch.finfo(logits_NC.dtype).eps)


def masked_margins(logits_NC: Tensor, label_N: Tensor) -> Margins:
    """All outputs of ``margins``, each by its textbook formula; the margin as TRAK has it."""
    return _all_outputs(masked_margin(logits_NC, label_N), logits_NC, label_N)


def softmax_margins(logits_NC: Tensor, label_N: Tensor) -> Margins:
    """All outputs of ``margins``, each by its textbook formula; the margin by way of probabilities."""
    return _all_outputs(softmax_margin(logits_NC, label_N), logits_NC, label_N)


def _all_outputs(margin: Tensor, logits_NC: Tensor, label_N: Tensor) -> Margins:
    own_N1 = label_N.unsqueeze(1)
    p_NC = logits_NC.softmax(1)
    others = logits_NC.scatter(1, own_N1, -torch.inf)
    return Margins(
        margin=margin,
        hard_margin=(logits_NC.gather(1, own_N1) - others.amax(1, keepdim=True)).squeeze(1),
        loss=cross_entropy(logits_NC, label_N, reduction="none"),
        confidence=p_NC.gather(1, own_N1).squeeze(1),
        max_confidence=p_NC.amax(1),
        entropy=torch.special.entr(p_NC).sum(1),
        correct=logits_NC.argmax(1) == label_N,
    )


def margin_of_members(logits_MNC: Tensor, label_N: Tensor) -> Tensor:
    """``masked_margin`` of all members' logits at once, as rows of one matrix."""
    logits_RC = logits_MNC.flatten(0, 1)
    return masked_margin(logits_RC, label_N.repeat(len(logits_MNC))).view(logits_MNC.shape[:2])


def margin_by_member(logits_MNC: Tensor, label_N: Tensor) -> Tensor:
    """``masked_margin`` of one member after another."""
    return torch.stack([masked_margin(logits_NC, label_N) for logits_NC in logits_MNC])


def linear_masked_margin(embedding_ND: Tensor, weight_CD: Tensor, bias_C: Tensor, label_N: Tensor) -> Tensor:
    """``masked_margin`` of a linear layer's output."""
    return masked_margin(linear(embedding_ND, weight_CD, bias_C), label_N)


def cdist_mean(x_ND: Tensor, y_MD: Tensor | None = None) -> Tensor:
    """Mean distance through ``torch.cdist``."""
    return torch.cdist(x_ND, x_ND if y_MD is None else y_MD).mean()


def expanded_mean(x_ND: Tensor, y_MD: Tensor | None = None) -> Tensor:
    """Mean distance as ``torch.cdist`` has it inside, spelt out so that torch.compile can fuse it."""
    return _expanded(x_ND, x_ND if y_MD is None else y_MD).clamp_min(0).sqrt().mean()


def cdist_squared(x_ND: Tensor, y_MD: Tensor) -> Tensor:
    """Mean squared distance through ``torch.cdist``."""
    return torch.cdist(x_ND, y_MD).square().mean()


def expanded_squared(x_ND: Tensor, y_MD: Tensor) -> Tensor:
    """Mean squared distance from norms and one matrix product."""
    return _expanded(x_ND, y_MD).mean()


def _expanded(x_ND: Tensor, y_MD: Tensor) -> Tensor:
    return x_ND.square().sum(1)[:, None] + y_MD.square().sum(1) - 2 * x_ND @ y_MD.T


def cdist_rbf(x_ND: Tensor, y_MD: Tensor) -> Tensor:
    """Mean of Gaussian kernels through ``torch.cdist``, one bandwidth after another."""
    squared_NM = torch.cdist(x_ND, y_MD).square()
    return torch.stack([torch.exp(-squared_NM / (2 * sigma**2)).mean() for sigma in BANDWIDTHS])


def cdist_neighbours(x_ND: Tensor, y_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest neighbours through ``torch.cdist`` and topk."""
    value, index = torch.cdist(x_ND, y_MD).topk(NEIGHBOURS, largest=False)
    return value, index


def sklearn_neighbours(x_ND: Tensor, y_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest neighbours by scikit-learn's brute force, which keeps no matrix either."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute").fit(y_MD.numpy())
    distance, index = search.kneighbors(x_ND.numpy())
    return torch.from_numpy(distance), torch.from_numpy(index)


def mean_in_rows(formula: Callable[..., Tensor], x_ND: Tensor, y_MD: Tensor | None = None) -> Tensor:
    """A mean over pairs by ``formula``, some rows at a time, so that the whole matrix is never stored."""
    y_MD = x_ND if y_MD is None else y_MD
    blocks = x_ND.split(ROWS)
    return torch.stack([formula(block, y_MD) * (len(block) / len(x_ND)) for block in blocks]).sum(0)


def neighbours_in_rows(x_ND: Tensor, y_MD: Tensor) -> Tensor:
    """Distances of ``cdist_neighbours``, some rows at a time."""
    return torch.cat([cdist_neighbours(block, y_MD)[0] for block in x_ND.split(ROWS)])


cdist_in_rows = partial(mean_in_rows, cdist_mean)


def batched_entanglement(retain_RD: Tensor, forget_FD: Tensor) -> Tensor:
    """Entanglement as research code has it: one loop over batches for the means, another for the distances.

    But for one thing: sums are exact, where research code averages the means of unequal batches.
    """
    sets = (retain_RD, forget_FD)
    means = [sum(batch.sum(0) for batch in points.split(BATCH)) / len(points) for points in sets]
    within = sum(
        sum((batch - mean).norm(dim=1).square().sum() for batch in points.split(BATCH)) / len(points)
        for points, mean in zip(sets, means, strict=True)
    )
    return _over_between(torch.as_tensor(within), sets, torch.stack(means))


def whole_entanglement(retain_RD: Tensor, forget_FD: Tensor) -> Tensor:
    """Entanglement in a few eager operations on the whole sets."""
    sets = (retain_RD, forget_FD)
    means = [points.mean(0) for points in sets]
    within = [(points - mean).square().sum(1).mean() for points, mean in zip(sets, means, strict=True)]
    return _over_between(torch.stack(within).sum(), sets, torch.stack(means))


def _over_between(within: Tensor, sets: tuple[Tensor, Tensor], mean_2D: Tensor) -> Tensor:
    total = sum(len(points) for points in sets)
    share_2 = torch.tensor([len(points) / total for points in sets]).to(mean_2D)
    return within / (mean_2D - share_2 @ mean_2D).square().sum(1).mean()


def gathered_crops(
    image_NHWC: Tensor, id_B: Tensor, top_B: Tensor, left_B: Tensor, flip_B: Tensor, dtype: torch.dtype
) -> Tensor:
    """Crop, flip and normalise a batch by one gather of pixels."""
    _, height, width, _ = image_NHWC.shape
    padded = pad(image_NHWC[id_B], (0, 0, PADDING, PADDING, PADDING, PADDING))
    row_BH1 = (top_B[:, None] + torch.arange(height, device=id_B.device))[:, :, None]
    x_W = torch.arange(width, device=id_B.device)
    column_B1W = (left_B[:, None] + torch.where(flip_B[:, None], width - 1 - x_W, x_W))[:, None, :]
    batch_B11 = torch.arange(len(id_B), device=id_B.device)[:, None, None]
    return _normalised(padded[batch_B11, row_BH1, column_B1W], dtype)


def shifted_crops(
    image_NHWC: Tensor, id_B: Tensor, top_B: Tensor, left_B: Tensor, flip_B: Tensor, dtype: torch.dtype
) -> Tensor:
    """Crop, flip and normalise a batch as airbench's ``CifarLoader`` does: one masked copy for each shift."""
    _, height, width, _ = image_NHWC.shape
    image = _normalised(image_NHWC[id_B], dtype)
    black = _normalised(image_NHWC.new_zeros(1, 1, 1, 3), dtype)
    padded = black.expand(-1, -1, height + 2 * PADDING, width + 2 * PADDING).repeat(len(id_B), 1, 1, 1)
    padded[:, :, PADDING : PADDING + height, PADDING : PADDING + width] = image
    rows = padded.new_empty(*padded.shape[:2], height, padded.shape[3])
    for shift in range(2 * PADDING + 1):
        chosen = top_B == shift
        rows[chosen] = padded[chosen, :, shift : shift + height]
    cropped = torch.empty_like(image)
    for shift in range(2 * PADDING + 1):
        chosen = left_B == shift
        cropped[chosen] = rows[chosen, :, :, shift : shift + width]
    return torch.where(flip_B[:, None, None, None], cropped.flip(-1), cropped)


def single_crops(
    image_NHWC: Tensor, id_B: Tensor, top_B: Tensor, left_B: Tensor, flip_B: Tensor, dtype: torch.dtype
) -> Tensor:
    """Crop and flip image by image with torchvision's functions, as a DataLoader does; then normalise."""
    from torchvision.transforms.v2 import functional as transforms

    _, height, width, _ = image_NHWC.shape
    images = []
    for index, top, left, flip in zip(
        *(part.tolist() for part in (id_B, top_B, left_B, flip_B)), strict=True
    ):
        padded = transforms.pad(image_NHWC[index].permute(2, 0, 1), [PADDING])
        cropped = transforms.crop(padded, top, left, height, width)
        images.append(transforms.horizontal_flip(cropped) if flip else cropped)
    return _normalised(torch.stack(images).permute(0, 2, 3, 1), dtype)


def plain_images(image_NHWC: Tensor, id_B: Tensor, *draws: Tensor, dtype: torch.dtype) -> Tensor:
    """Gather and normalise, without augmentation."""
    return _normalised(image_NHWC[id_B], dtype)


def _normalised(image_BHWC: Tensor, dtype: torch.dtype) -> Tensor:
    exact = torch.promote_types(dtype, torch.float32)
    mean_3, std_3 = (torch.tensor(part, dtype=exact, device=image_BHWC.device) for part in (MEAN, STD))
    return ((image_BHWC.to(exact) / 255 - mean_3) / std_3).to(dtype).permute(0, 3, 1, 2)


WHOLE: frozenset[Any] = frozenset(
    {cdist_mean, expanded_mean, cdist_squared, expanded_squared, cdist_rbf, cdist_neighbours}
)  # store all distances of x and y
ON_CPU: frozenset[Any] = frozenset({sklearn_neighbours, single_crops})  # run there alone
