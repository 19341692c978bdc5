"""Comparisons of class scores, [batch, classes]."""

import torch.nn.functional as F
from torch import Tensor

UNLABELLED = -100      # the class of a sample without label; PyTorch's own ignore_index


def kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(student/T)), summed over classes, mean over samples (Hinton et al. 2015, sec. 2).

    student, teacher: logits [batch, classes]; returns a scalar in nats.
    """
    p, q = (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
    return F.kl_div(p, q, reduction="batchmean", log_target=True) * temperature**2


def labels(logits: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with the labels, mean over the batch; a sample without a label counts 0 (so that parts of a batch add up).

    logits [batch, classes], y [batch] with `UNLABELLED` where there is no label; returns a scalar in nats.
    """
    return F.cross_entropy(logits, y, ignore_index=UNLABELLED, reduction="sum", label_smoothing=smoothing) / len(y)
