"""Judges of classifiers: accuracy, calibration, agreement with the teacher."""

import torch
from torch import Tensor
from torch.nn import Module

from stillroom.batches import whole


@torch.no_grad()
def predict(model: Module, x: Tensor, batch: int = 256) -> Tensor:
    """Logits [n, classes] of a model in eval mode, on its own device; its mode is put back afterwards."""
    mode, device = model.training, next((p.device for p in model.parameters()), x.device)
    model.eval()
    try:
        return torch.cat([model(part.to(device)).float().cpu() for part in x.split(batch)])
    finally:
        model.train(mode)


def accuracy(model: Module, data) -> float:
    """Share of samples whose largest logit is their label, in percent."""
    x, y = whole(data)
    return 100 * (predict(model, x).argmax(-1) == y).float().mean().item()


def agreement(model: Module, teacher: Module, data) -> float:
    """Share of samples on which model and teacher say the same, in percent (Stanton et al. 2021)."""
    x = whole(data)[0]
    return 100 * (predict(model, x).argmax(-1) == predict(teacher, x).argmax(-1)).float().mean().item()


def calibration_error(logits: Tensor, y: Tensor, bins: int = 15) -> float:
    """Expected calibration error, in percent: |accuracy − confidence| over equal bins of confidence, weighed by their share
    (Guo et al. 2017, eq. 3). logits [n, classes], y [n]."""
    confidence, said = logits.softmax(-1).max(-1)
    right = (said == y).float()
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins).index_add_(0, bin_of, right - confidence)
    return 100 * (gap.abs().sum() / len(y)).item()
