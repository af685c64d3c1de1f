"""Train one model: the recipe's SGD over device-resident batches."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain, islice

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rumfast.config import TrainConfig
from rumfast.data import Dataset, check_ids
from rumfast.errors import DivergedError, UsageError
from rumfast.inference import Predictor
from rumfast.loaders import Batch, ResidentLoader, batch_count, open_loader
from rumfast.models import Classifier, build_model, initialize_
from rumfast.runtime import cpu_threads, pick_device, pick_precision
from rumfast.stepping import Fed, Loss, Record, Stepper, Taken, cuda_graphs, side_stream

# Values in the stem's output for one batch, below which a CPU trains faster on one thread than on several:
# threads of small steps mostly wait for each other (digits, two busy cores: 11 000 against 130 images/s).
SMALL_STEP = 2**20

# Variants of one network's code that a process may compile: frozen parts, batch sizes, widths, modes. Beyond
# torch's own limit of 8, which all learners of a process share, it would run uncompiled without a word.
COMPILED_VARIANTS = 64

Observer = Callable[[Tensor, Tensor, Tensor], None]  # ids [B], logits [B, C] and labels [B] of a step


class Learner:
    """A model on its device, with the data and the recipe it learns from.

    One learner serves many models in turn: weights are redrawn or loaded *in place*, so that a step is
    compiled and recorded once. ``examples`` counts every example a gradient was taken of, which is the
    budget that plans are compared at.
    """

    def __init__(
        self, data: Dataset, config: TrainConfig, device: str = "auto", *, model: Classifier | None = None
    ) -> None:
        self.config = config
        self.device = pick_device(device)
        self.dtype = pick_precision(config.precision, self.device)
        self.loader = open_loader(
            data,
            device=self.device,
            batch_size=config.batch_size,
            flip=config.flip,
            crop_padding=config.crop_padding,
            kind=config.loader,
        )
        if model is None:
            model = build_model(
                config.arch, len(data.classes), width=config.width, stem_stride=config.stem_stride
            )
        self.model: Classifier = model.to(self.device)
        if config.compile == "on" or (config.compile == "auto" and self.device.type == "cuda"):
            limit = torch._dynamo.config.recompile_limit
            torch._dynamo.config.recompile_limit = max(limit, COMPILED_VARIANTS)
            # The second batch size compiles for any: sets to unlearn have other sizes than those trained on.
            self._forward = torch.compile(self.model)
        else:
            self._forward = self.model
        records = config.cuda_graphs == "auto" and self.device.type == "cuda"
        self._recorder: Callable[[], Record | None] = cuda_graphs if records else lambda: None
        self._stream = torch.cuda.Stream(self.device) if records else None
        self._training: Stepper[Batch] | None = None
        self.predictor = Predictor(
            self.model,
            data,
            forward=self._forward,
            image_NHWC=self.loader.image_NHWC if isinstance(self.loader, ResidentLoader) else None,
            record=self._recorder(),
            stream=self._stream,
        )
        stem = (data.image_size // config.stem_stride) ** 2 * next(self.model.parameters()).shape[0]
        self.threads = 1 if config.batch_size * stem < SMALL_STEP else torch.get_num_threads()
        self.examples = 0

    def logits(self, image: Tensor, model: Classifier | None = None) -> Tensor:
        """Logits [B, C] of the model, or of another, in float32, computed in the recipe's precision.

        A batch of one image, such as a forget set of one, leaves the running statistics of batch norm as they
        are: a few steps would turn them into those of this image. In a recipe that takes most images one by
        one they count.
        """
        chosen = self.model if model is None else model
        alone = len(image) == 1 and self.config.batch_size >= 2 * self.config.micro_batches
        with (
            running_statistics_kept(chosen) if alone else nullcontext(),
            torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32),
        ):
            return (self._forward if model is None else model)(image).float()

    def optimizer(
        self, lr: float, momentum: float, weight_decay: float, weights: list[nn.Parameter] | None = None
    ) -> torch.optim.SGD:
        """Fused SGD over ``weights`` (None: all of the model's)."""
        chosen = list(self.model.parameters()) if weights is None else weights
        sgd = torch.optim.SGD(chosen, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)
        if self._stream is not None:  # a graph reads the rate from where it lies
            for group in sgd.param_groups:
                group["lr"] = torch.full((), lr, device=self.device)
        return sgd

    def batches(self, ids: Tensor, epochs: float, seed: int) -> Iterator[Batch]:
        """Shuffled batches of ``ids`` for ``epochs`` passes; a fraction of a pass is rounded up to whole
        batches."""
        steps = math.ceil(round(epochs * self.steps_per_epoch(len(ids)), 9))
        return islice(chain.from_iterable(self.loader.epochs(ids, seed)), steps)

    def steps_per_epoch(self, examples: int) -> int:
        """Batches in one pass over ``examples`` examples."""
        return batch_count(examples, self.config.batch_size)

    def descend(
        self,
        batches: Iterator[Fed],
        optimizer: torch.optim.Optimizer,
        loss_of: Callable[[Fed], Loss],
        repair: Callable[[], None] | None = None,
        frozen: nn.Module | None = None,
    ) -> float:
        """Take one SGD step per batch on ``loss_of(batch)``, which also says how many examples it used.

        See ``take``, which takes them, and ``stepper`` for the arguments.
        """
        return self.take(batches, self.stepper(optimizer, loss_of, repair), frozen=frozen)

    def stepper(
        self,
        optimizer: torch.optim.Optimizer,
        loss_of: Callable[[Fed], Loss],
        repair: Callable[[], None] | None = None,
    ) -> Stepper[Fed]:
        """Steps to be taken by ``take``, several times over if need be: they are recorded once.

        Args:
            loss_of: a function of what it is given, of the weights, and of tensors that stay in place.
            repair: called after each step, to put back weights that must not move.
        """
        return Stepper(optimizer, loss_of, self.config.micro_batches, self._recorder(), repair)

    def take(
        self,
        batches: Iterator[Fed],
        step: Stepper[Fed],
        *,
        after_step: Callable[[Fed, Taken], None] | None = None,
        frozen: nn.Module | None = None,
    ) -> float:
        """Take a step on each of ``batches``: a batch, or a tuple of batches, tensors and constants.

        Returns the last step's loss. The loss stays on the device until the end: a host sync per step costs
        more than the step of a small model.

        Args:
            after_step: called in Python with what each step was taken on, and what came of it.
            frozen: part of the model that stays in eval mode, so that its batch-norm statistics stay too.

        Raises:
            DivergedError: the loss, a weight or a batch-norm statistic is not finite at the end.
            UsageError: a step does not fit into the device's memory.
        """
        self.model.train()
        if frozen is not None:
            frozen.eval()
        loss = torch.zeros((), device=self.device)
        try:
            with cpu_threads(self.threads), side_stream(self.device, self._stream):
                for batch in batches:
                    taken = step(batch)
                    loss = taken.loss
                    self.examples += taken.examples
                    if after_step is not None:
                        after_step(batch, taken)
        except torch.OutOfMemoryError as error:
            raise UsageError(
                f"batch_size: {self.config.batch_size} examples in {self.config.micro_batches} parts do not "
                f"fit into {self.device}'s memory ({error}); raise micro_batches"
            ) from None
        finally:
            self.model.zero_grad()  # gradients of recorded steps keep the memory of graphs that are gone
        self.model.eval()
        last = loss.item()
        if not math.isfinite(last) or not _all_finite(self.model):
            raise DivergedError(f"training diverged: the loss is {last}; lower lr")
        return last

    def cross_entropy(self, batch: Batch) -> Loss:
        """Mean cross-entropy of a batch, and the number of its examples."""
        return self._watched_cross_entropy(batch)[:2]

    def _watched_cross_entropy(self, batch: Batch) -> Loss:
        logits = self.logits(batch.image)
        return cross_entropy(logits, batch.label), len(batch.id), logits.detach()

    def fit(
        self,
        ids: Tensor,
        seed: int,
        observe: Observer | None = None,
        after_epoch: Callable[[int], None] | None = None,
    ) -> float:
        """Train the model from new weights on ``ids`` with the recipe; returns the last loss.

        Args:
            observe: called after each step with the ids, logits and labels of its batch, the logits as they
                were before the step.
            after_epoch: called with the number of epochs done; it must leave weights and train mode alone.
        """
        initialize_(self.model, seed)
        step = self._trainer()
        steps_per_epoch = self.steps_per_epoch(len(ids))
        done = 0

        def schedule() -> None:
            step.set_rate(learning_rate(self.config, done / steps_per_epoch))

        def advance(batch: Batch, taken: Taken) -> None:
            nonlocal done
            if observe is not None:
                observe(batch.id, taken.watched[0], batch.label)
            done += 1
            schedule()
            if after_epoch is not None and done % steps_per_epoch == 0:
                after_epoch(done // steps_per_epoch)

        schedule()
        return self.take(self.batches(ids, self.config.epochs, seed), step, after_step=advance)

    def _trainer(self) -> Stepper[Batch]:
        """The recipe's steps: the same ones for each model that is trained."""
        config = self.config
        if self._training is None:
            optimizer = self.optimizer(config.lr, config.momentum, config.weight_decay)
            self._training = self.stepper(optimizer, self._watched_cross_entropy)
        self._training.forget_momentum()
        return self._training


def learning_rate(config: TrainConfig, epoch: float) -> float:
    """Learning rate after ``epoch`` passes: linear warm-up, then constant, cosine to 0, or steps by γ.

    >>> learning_rate(TrainConfig(lr=0.2, epochs=10, schedule="cosine"), 5.0)
    0.1
    """
    if epoch < config.warmup_epochs:
        return config.lr * epoch / config.warmup_epochs
    if config.schedule == "multistep":
        return config.lr * config.gamma ** sum(epoch >= milestone for milestone in config.milestones)
    if config.schedule == "cosine":
        progress = (epoch - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-9)
        return round(0.5 * config.lr * (1 + math.cos(math.pi * min(progress, 1.0))), 12)
    return config.lr


@contextmanager
def running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Batch norms in train mode normalise by the batch and do not update their running statistics.

    To normalise by the running statistics instead would let gradient ascent diverge: nothing then bounds the
    features of the image whose loss rises (digits, ``neggrad_plus`` at its defaults).
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _all_finite(model: nn.Module) -> bool:
    # Buffers too: batch-norm statistics can overflow while the loss, which does not use them, looks fine.
    finite = [tensor.isfinite().all() for tensor in model.state_dict().values()]
    return bool(torch.stack(finite).all())


def train(
    data: Dataset,
    config: TrainConfig,
    ids: object = None,
    *,
    seed: int | None = None,
    device: str = "auto",
    observe: Observer | None = None,
) -> Classifier:
    """Train a model on ``ids`` (None: the whole training set) and return it in eval mode.

    On a CPU the result is a pure function of (data, config, ids, seed, number of threads).

    Args:
        ids: [R] int64 example ids, unique.
        seed: of weights and order; None takes ``config.seed``.
        observe: called after each step with the ids, logits and labels of its batch, the logits as they were
            before it, for instance ``ProxyTotals.add``.

    Raises:
        DataError: ids are empty, duplicated, out of range or not integers.
        DivergedError: the loss is not finite.

    >>> import rumfast as rf
    >>> data = rf.load_dataset("digits").take(100, 50)
    >>> model = train(data, TrainConfig(arch="resnet8", epochs=1))
    >>> rf.predict(model, data).accuracy("test") > 0
    True
    """
    chosen = check_ids(range(len(data)) if ids is None else ids, len(data), "ids")
    learner = Learner(data, config, device)
    seed = config.seed if seed is None else seed
    learner.fit(torch.as_tensor(chosen, device=learner.device), seed, observe)
    return learner.model
