"""Judges of classifiers: accuracy, calibration, agreement with the teacher."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Subset

from stillroom.batches import ids, tagged, to_device, whole
from stillroom.measure.cost import placed, resting
from stillroom.parts.teachers import Cached


def predict(model: Module, x: Tensor, batch: int = 256) -> Tensor:
    """Logits [n, classes] on the CPU, of a model in eval mode, on its own device; its modes are put back afterwards."""
    with resting(model):
        return torch.cat([model(part.to(placed(model))).float().cpu() for part in x.split(batch)])


def answers(model: Module, data, batch: int = 256) -> tuple[Tensor, Tensor]:
    """Logits [n, classes] and labels [n] of a data set, which is never in memory as a whole; of a store what it holds of it."""
    stored = model.told(data) if isinstance(model, Cached) else None
    said, labels = [], []
    with resting(model):
        for start in range(0, len(data), batch):
            some = Subset(data, range(start, min(start + batch, len(data))))
            x, y = whole(some)[:2]
            tagged(x, ids(some))                       # a stored teacher inside another module finds them by these
            if stored is None:
                said.append(model(to_device(x, placed(model))).float().cpu())
            labels.append(y)
    return torch.cat(said) if stored is None else stored, torch.cat(labels)


def right(logits: Tensor, y: Tensor) -> float:
    """Share of samples whose largest logit is their label, in percent. logits [n, classes], y [n]."""
    return 100 * (logits.argmax(-1) == y).double().mean().item()


def accuracy(model: Module, data) -> float:
    """Share of samples whose largest logit is their label, in percent."""
    return right(*answers(model, data))


def base_to_novel(model: Module, data, base: Sequence[int]) -> tuple[float, float, float]:
    """How a classifier does on classes that labels were shown of, and on the others (Zhou et al. 2022, CoCoOp): accuracy on
    samples of `base` classes among these alone, accuracy on the others' among the others, and their harmonic mean, in percent."""
    logits, y = answers(model, data)
    shown = torch.zeros(logits.shape[1], dtype=torch.bool).index_fill(0, torch.tensor(base), True)
    a, b = (right(logits[among[y]].masked_fill(~among, -torch.inf), y[among[y]]) for among in (shown, ~shown))
    return a, b, harmonic(a, b)


def harmonic(a: float, b: float) -> float:
    """2ab / (a + b), 0 when both are."""
    return 2 * a * b / (a + b) if a + b else 0.0


def agreement(model: Module, teacher: Module, data) -> float:
    """Share of samples on which model and teacher say the same, in percent (Stanton et al. 2021)."""
    return right(answers(model, data)[0], answers(teacher, data)[0].argmax(-1))


def calibration_error(logits: Tensor, y: Tensor, bins: int = 15) -> float:
    """Expected calibration error, in percent: |accuracy − confidence| over equal bins of confidence, weighed by their share
    (Guo et al. 2017, eq. 3). logits [n, classes], y [n]."""
    confidence, said = logits.softmax(-1).max(-1)
    right = (said == y).float()
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins).index_add_(0, bin_of, right - confidence)
    return 100 * (gap.abs().sum() / len(y)).item()
