"""What a student says on data, and what it costs."""

from hashlib import blake2b
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Subset

from stillroom.measure.classification import calibration_error, right

BINS = 10      # of the calibration picture


def numbers(logits: Tensor, y: Tensor) -> dict[str, Any]:
    """Accuracy and calibration error in percent, right answers by class, and the bins of the calibration picture.

    logits [n, classes], y [n]. Raises `FloatingPointError` when logits are not finite.
    """
    if not logits.isfinite().all():
        raise FloatingPointError(f"{int((~logits.isfinite()).any(-1).sum())} of {len(y)} answers are not finite numbers")
    sure, answer = logits.softmax(-1).max(-1)
    hit, one = (answer == y).double(), torch.ones(len(y), dtype=torch.float64)
    bin_of = (sure * BINS).ceil().long().clamp(1, BINS) - 1

    def per(index: Tensor, width: int, weight: Tensor) -> list[float]:
        return torch.zeros(width, dtype=torch.float64).index_add_(0, index, weight.double()).tolist()

    classes = logits.shape[-1]
    return {"accuracy": right(logits, y), "ece": calibration_error(logits, y), "loss": F.cross_entropy(logits, y).item(),
            "classes_right": per(y, classes, hit), "classes_count": per(y, classes, one),
            "bins_right": per(bin_of, BINS, hit), "bins_count": per(bin_of, BINS, one), "bins_sure": per(bin_of, BINS, sure)}


def some(data: Any, limit: int) -> Any:
    """At most `limit` samples, spread evenly over the data set."""
    return data if len(data) <= limit else Subset(data, torch.linspace(0, len(data) - 1, limit).long().tolist())


def fingerprint(net: Module) -> str:
    """Eight letters that follow from all weights and buffers."""
    digest = blake2b(digest_size=4)
    for name, value in sorted(net.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def architecture(net: Module) -> str:
    """Eight letters that follow from the modules and the shapes of their weights: what costs the same."""
    return blake2b(f"{net}{[tuple(p.shape) for p in net.parameters()]}".encode(), digest_size=4).hexdigest()
