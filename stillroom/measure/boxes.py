"""Judges of boxes (top, left, height, width): how far they overlap, and how many objects are found."""

from collections.abc import Sequence

import torch
from torch import Tensor


def iou(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of every box with every other: [n, 4], [m, 4] → [n, m]; 0 where both are empty."""
    one, other = one.double(), other.double()
    starts = torch.maximum(one[:, None, :2], other[None, :, :2])                     # [n, m, 2]
    ends = torch.minimum((one[:, :2] + one[:, 2:])[:, None], (other[:, :2] + other[:, 2:])[None])
    common = (ends - starts).clamp(min=0).prod(-1)
    union = one[:, 2:].prod(-1)[:, None] + other[:, 2:].prod(-1)[None] - common
    return common / union.clamp(min=torch.finfo(union.dtype).tiny)


def corloc(found: Sequence[Tensor], truth: Sequence[Tensor], least: float = 0.5) -> float:
    """Share of images, in percent, whose one box overlaps any true one with an IoU of `least` or more (Deselaers et al. 2010).

    found: a box [4] of each image, of the first ones if there are fewer: the others count as missed. truth: boxes
    [objects, 4] of each image.
    """
    hits = sum(bool((iou(box[None], boxes) >= least).any()) for box, boxes in zip(found, truth, strict=False))
    return 100 * hits / len(truth)
