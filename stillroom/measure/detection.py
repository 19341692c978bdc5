"""Judges of detectors: average precision as COCO computes it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map

from stillroom.parts.boxes import overlaps

COCO = tuple(0.5 + 0.05 * i for i in range(10))      # IoUs from which a box counts as found
RECALLS = np.linspace(0, 1, 101)


class Boxes(NamedTuple):
    """What is on an image, or was found there; corners x1, y1, x2, y2."""

    boxes: Tensor            # [n, 4]
    labels: Tensor           # [n], class numbers
    scores: Tensor | None = None     # [n], of what was found


default_collate_fn_map[Boxes] = lambda boxes, **_: list(boxes)      # a batch holds those of each image, which are not as many

def gathered(data, index: Tensor, device: torch.device) -> tuple[Tensor, list[Boxes]]:
    """Some samples (image, `Boxes`) of one size, together: images [n, channels, height, width], and the boxes on each."""
    samples = [data[int(i)] for i in index]
    truth = [Boxes(boxes.to(device), labels.to(device)) for _, (boxes, labels, *_) in samples]
    return torch.stack([x for x, _ in samples]).to(device), truth


def average_precision(found: Sequence[Boxes], truth: Sequence[Boxes], classes: int, thresholds: Sequence[float] = COCO,
                      limit: int = 100) -> Tensor:
    """Average precision of each class at each IoU, in percent, [thresholds, classes]; NaN of a class that is on no image.

    Of each image and class the `limit` boxes of highest score count. In their order each takes the free true box that it overlaps
    most; precision is made to fall with recall, and averaged over 101 recalls.
    """
    table = np.full((len(thresholds), classes), np.nan)
    for label in range(classes):
        there = sum(int((t.labels == label).sum()) for t in truth)
        if not there:
            continue
        pairs = [_matched(f, t, label, thresholds, limit) for f, t in zip(found, truth, strict=True)]
        order = np.argsort(-np.concatenate([scores for scores, _ in pairs]), kind="stable")
        hits = np.concatenate([hit for _, hit in pairs], 1)[:, order]                     # [thresholds, found]
        for row, right in enumerate(hits):
            table[row, label] = 100 * _area(right, there)
    return torch.from_numpy(table)


def mean_ap(found: Sequence[Boxes], truth: Sequence[Boxes], classes: int | Sequence[int],
            thresholds: Sequence[float] = COCO) -> float:
    """Average precision, in percent, mean over IoUs and classes; over some of the classes where their numbers are given.
    COCO's AP; AP50 with thresholds=(0.5,)."""
    some = range(classes) if isinstance(classes, int) else classes
    table = average_precision(found, truth, max(some) + 1, thresholds)
    return table[:, list(some)].nanmean().item()


def _matched(found: Boxes, truth: Boxes, label: int, thresholds: Sequence[float], limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of one image's boxes of a class, falling, [found], and whether each has its true box, [thresholds, found]."""
    assert found.scores is not None
    own = found.labels == label
    scores = found.scores[own].double().numpy()
    order = np.argsort(-scores, kind="stable")[:limit]
    iou = overlaps(found.boxes[own][order].double(), truth.boxes[truth.labels == label].double()).numpy()
    hits = np.zeros((len(thresholds), len(order)), dtype=bool)
    for row, least in enumerate(thresholds):
        free = np.ones(iou.shape[1], dtype=bool)
        for i, one in enumerate(iou):
            best = np.flatnonzero(free & (one >= min(least, 1 - 1e-10)))
            if len(best):
                hits[row, i], free[best[np.flatnonzero(one[best] == one[best].max())[-1]]] = True, False
    return scores[order], hits


def _area(right: np.ndarray, there: int) -> float:
    """Under precision over recall, of hits in the order of falling scores."""
    true = right.cumsum()
    precision = np.maximum.accumulate((true / np.arange(1, len(right) + 1))[::-1])[::-1]
    at = np.searchsorted(true / there, RECALLS, side="left")
    return np.concatenate([precision, [0.0]])[at].mean() if len(right) else 0.0
