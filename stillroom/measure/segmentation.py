"""Judges of segmentation: how well pixels are told apart, by one table of true against said classes."""

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
