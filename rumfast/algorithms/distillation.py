"""What teachers say: their logits per batch, and the divergence of a student from them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from rumfast.loaders import Batch
from rumfast.models import Classifier
from rumfast.training import Learner


def divergence(teacher_BC: Tensor, student_BC: Tensor, temperature: float) -> Tensor:
    """T²·KL(teacher ‖ student), the mean over the batch, in nats.

    KL is taken between softmax(z / T); T² keeps the gradient's size the same for every T (Hinton et al. 2015,
    section 2).

    >>> z = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    >>> divergence(z, z, 4.0).item()
    0.0
    """
    taught, learned = (log_softmax(logits / temperature, 1) for logits in (teacher_BC, student_BC))
    return temperature**2 * kl_div(learned, taught, reduction="batchmean", log_target=True)


@torch.no_grad()
def teach(
    learner: Learner, teachers: Sequence[tuple[Classifier, Tensor]], passes: float
) -> Callable[[Batch], Tensor]:
    """Logits [B, C] of each example's own teacher, in eval mode, as a function of the batch.

    Without augmentation a teacher says the same of an example in every pass: where there is more than one,
    it is asked once, and the logits stay on the device.

    Args:
        teachers: (model, ids [·] that it teaches), disjoint ids.
        passes: how often each example will be asked for.
    """
    for teacher, _ in teachers:
        teacher.eval()
    if passes <= 1 or learner.config.flip or learner.config.crop_padding:
        return _ask_each_batch(learner, teachers)
    classes = learner.model.fc.out_features
    logits_NC = torch.zeros(len(learner.loader), classes, device=learner.device)
    for teacher, ids in teachers:
        for batch in learner.loader.epoch(ids, shuffle=False):
            logits_NC[batch.id] = learner.logits(batch.image, teacher)
    return lambda batch: logits_NC[batch.id]


def _ask_each_batch(
    learner: Learner, teachers: Sequence[tuple[Classifier, Tensor]]
) -> Callable[[Batch], Tensor]:
    teacher_N = torch.zeros(len(learner.loader), dtype=torch.int64, device=learner.device)
    for index, (_, ids) in enumerate(teachers):
        teacher_N[ids] = index

    @torch.no_grad()
    def ask(batch: Batch) -> Tensor:
        said = torch.stack([learner.logits(batch.image, teacher) for teacher, _ in teachers])
        return said[teacher_N[batch.id], torch.arange(len(batch.id), device=learner.device)]

    return ask
