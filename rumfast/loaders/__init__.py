"""Loaders: one contract, `loader.epoch(ids, epoch)` gives batches of (image, label, example id)."""

from rumfast.loaders.base import Batch, batch_bounds, batch_count
from rumfast.loaders.choice import open_loader
from rumfast.loaders.resident import ResidentLoader
from rumfast.loaders.streaming import StreamingLoader

__all__ = ["Batch", "ResidentLoader", "StreamingLoader", "batch_bounds", "batch_count", "open_loader"]
