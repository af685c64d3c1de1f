"""Which loader serves a data set."""

from pathlib import Path
from typing import Any, Literal

import torch

from rumfast.data import Dataset
from rumfast.errors import UsageError
from rumfast.loaders.resident import ResidentLoader
from rumfast.loaders.streaming import StreamingLoader

FREE_SHARE = 0.5  # of the device's free memory that images may fill; the rest is for the model's activations


def open_loader(
    data: Dataset,
    *,
    device: torch.device,
    batch_size: int,
    flip: bool = False,
    crop_padding: int = 0,
    kind: Literal["auto", "resident", "streaming"] = "auto",
) -> ResidentLoader | StreamingLoader:
    """Open the training images resident on ``device`` where they fit, and streaming where they do not.

    Both give the same batches. On a CPU they always fit: the data set is in memory already.

    Raises:
        UsageError: streaming is needed or asked for, but ``data`` is not a whole packed folder.
    """
    options: dict[str, Any] = {
        "device": device,
        "batch_size": batch_size,
        "flip": flip,
        "crop_padding": crop_padding,
    }
    if kind == "resident" or (kind == "auto" and _fits(data, device)):
        return ResidentLoader(data.train, data.mean, data.std, **options)
    beton = Path(data.location or "") / "train.beton"
    if not beton.exists() or data.taken != (None, None, 0):
        raise UsageError(
            "loader: streaming needs a whole packed data set; pack it, or set loader to resident"
        )
    return StreamingLoader(beton, data.mean, data.std, **options)


def _fits(data: Dataset, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return data.train.image_NHWC.nbytes < FREE_SHARE * free
