"""Loaders: one contract, `loader.epoch(ids, epoch)` gives batches of (image, label, example id)."""

from rumfast.loaders.choice import open_loader
from rumfast.loaders.resident import Batch, ResidentLoader, batch_bounds
from rumfast.loaders.streaming import StreamingLoader

__all__ = ["Batch", "ResidentLoader", "StreamingLoader", "batch_bounds", "open_loader"]
