"""Judges of segmentation: how well pixels are told apart, by one table of true against said classes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from stillroom.measure.classification import answers
from stillroom.parts.losses.logits import UNLABELLED


def confusion(said: Tensor, true: Tensor, classes: int) -> Tensor:
    """How many pixels of each true class (row) were taken for each class (column), [classes, classes].

    said, true: class numbers of any one shape; where the true one is `UNLABELLED` the pixel is void and does not count.
    """
    known = true != UNLABELLED
    return torch.bincount(true[known] * classes + said[known], minlength=classes**2).view(classes, classes)


def segmented(model: Module, data, batch: int = 64) -> Tensor:
    """The confusion [classes, classes] of a model, images → logits [batch, classes, height, width], on samples (image, mask)."""
    logits, true = answers(model, data, batch)
    return confusion(logits.argmax(1), true, logits.shape[1])


def iou_by_class(table: Tensor) -> Tensor:
    """Intersection over union of each class, in percent, [classes]; NaN of one that is neither there nor said."""
    hits = table.diagonal().double()
    return 100 * hits / (table.sum(0) + table.sum(1) - hits)


def mean_iou(table: Tensor) -> float:
    """Mean over classes of the intersection over union, in percent; classes that are neither there nor said are left out."""
    return iou_by_class(table).nanmean().item()


def pixel_accuracy(table: Tensor) -> float:
    """Share of pixels whose class was found, in percent."""
    return 100 * (table.diagonal().sum().double() / table.sum()).item()


class Saliency(NamedTuple):
    iou: float           # of what is above one half, mean over images
    fbeta: float         # the largest over thresholds of its mean over images
    accuracy: float     # share of pixels


def saliency(maps: Sequence[Tensor] | Tensor, masks: Sequence[Tensor] | Tensor, beta: float = 0.3,
             thresholds: int = 255) -> Saliency:
    """How well maps in [0, 1] tell the objects from the rest, in percent: maps and masks [height, width] of each image.

    F_β is (1 + β²)·P·R / (β²·P + R), `beta` is β² (Achanta et al. 2009), 0 where nothing is hit, at each of the `thresholds` i /
    thresholds. A pixel is said when its map is larger.
    """
    at = torch.arange(thresholds, dtype=torch.float64) / thresholds
    rows = []
    for given, true in zip(maps, masks, strict=True):
        given, true = given.double().flatten(), true.bool().flatten()
        said = given > 0.5
        bins = torch.bucketize(given, at)                        # the number of thresholds that a pixel is above
        hits, size = (torch.bincount(bins[which], minlength=thresholds + 1).flip(0).cumsum(0).flip(0)[1:].double()
                      for which in (true, torch.ones_like(true)))
        f = (1 + beta) * hits / (beta * true.sum().double() + size)          # P = hits / size, R = hits / what is true
        rows.append((((said & true).sum() / (said | true).sum().clamp(min=1)).double(), (said == true).double().mean(), f))
    overlap, right, f = (torch.stack(column).mean(0) for column in zip(*rows, strict=True))
    return Saliency(100 * overlap.item(), 100 * f.max().item(), 100 * right.item())
