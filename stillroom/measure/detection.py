"""Judges of detectors: average precision as COCO computes it."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map

from stillroom.errors import Refused
from stillroom.parts import views
from stillroom.parts.boxes import mask_overlaps, overlaps, through

COCO = tuple(0.5 + 0.05 * i for i in range(10))      # IoUs from which a box counts as found
RECALLS = np.linspace(0, 1, 101)


class Boxes(NamedTuple):
    """What is on an image, or was found there; corners x1, y1, x2, y2."""

    boxes: Tensor            # [n, 4]
    labels: Tensor           # [n], class numbers; or [n, …], what else is known of each
    scores: Tensor | None = None     # [n], of what was found
    masks: Tensor | None = None      # [n, height, width], boolean

    def only(self, some: Tensor) -> "Boxes":
        """Those of these numbers, or where it is true."""
        return Boxes._make(x if x is None else x[some] for x in self)

    def known(self) -> dict[str, Tensor]:
        """What is known of them by name, as torchvision's detectors take it."""
        return {name: x for name, x in self._asdict().items() if x is not None}

    def to(self, device: torch.device | str) -> "Boxes":
        return Boxes._make(x if x is None else x.to(device) for x in self)


default_collate_fn_map[Boxes] = lambda boxes, **_: list(boxes)      # a batch holds those of each image, which are not as many


def gathered(data, index: Tensor, device: torch.device) -> tuple[Tensor, list[Boxes]]:
    """Some samples (image, `Boxes`) of one size, together: images [n, channels, height, width], and the boxes on each.
    Raises `Refused` for samples of another kind."""
    samples = [data[int(i)] for i in index]
    if not all(isinstance(known, tuple) for _, known in samples):
        raise Refused("the answer of an image is not its boxes", "name boxes:PATH; in Python give samples (image, Boxes)")
    return torch.stack([x for x, _ in samples]).to(device), [Boxes(*known).to(device) for _, known in samples]


def zoomed(scale: tuple[float, float], x: Tensor, *known: Sequence[Boxes]) -> tuple[Any, ...]:
    """Images by `views.zoom`, and lists of boxes on them: moved, cut at the border, left out where less than a pixel of their
    width or height remains. → images, lists; all as they are, and nothing drawn, when the scale is (1, 1)."""
    if tuple(scale) == (1, 1):
        return x, *known
    x, windows = views.zoom(x, scale)
    return x, *([_zoomed(b, window, x) for b, window in zip(boxes, windows, strict=True)] for boxes in known)


def _zoomed(known: Boxes, window: Tensor, like: Tensor) -> Boxes:
    known = known._replace(boxes=through(known.boxes, window, (like.shape[-2], like.shape[-1])))
    known = known.only((known.boxes[:, 2:] - known.boxes[:, :2] >= 1).all(1))
    if known.masks is None:
        return known
    return known._replace(masks=views.through(known.masks.to(like), window, 0.0) > 0.5)


def average_precision(found: Sequence[Boxes], truth: Sequence[Boxes], classes: int, thresholds: Sequence[float] = COCO,
                      limit: int = 100, of: Literal["boxes", "masks"] = "boxes") -> Tensor:
    """Average precision of each class at each IoU, in percent, [thresholds, classes]; NaN of a class that is on no image.

    Of each image and class the `limit` boxes (or masks) of highest score count. In their order each takes the free true one that
    it overlaps most; precision is made to fall with recall, and averaged over 101 recalls.
    """
    table = np.full((len(thresholds), classes), np.nan)
    for label in range(classes):
        there = sum(int((t.labels == label).sum()) for t in truth)
        if not there:
            continue
        pairs = [_matched(f, t, label, thresholds, limit, of) for f, t in zip(found, truth, strict=True)]
        order = np.argsort(-np.concatenate([scores for scores, _ in pairs]), kind="stable")
        hits = np.concatenate([hit for _, hit in pairs], 1)[:, order]                     # [thresholds, found]
        for row, right in enumerate(hits):
            table[row, label] = 100 * _area(right, there)
    return torch.from_numpy(table)


def mean_ap(found: Sequence[Boxes], truth: Sequence[Boxes], classes: int | Sequence[int],
            thresholds: Sequence[float] = COCO, of: Literal["boxes", "masks"] = "boxes") -> float:
    """Average precision, in percent, mean over IoUs and classes; over some of the classes where their numbers are given.
    COCO's AP, of boxes or of masks; AP50 with thresholds=(0.5,)."""
    some = range(classes) if isinstance(classes, int) else classes
    table = average_precision(found, truth, max(some) + 1, thresholds, of=of)
    return table[:, list(some)].nanmean().item()


def _matched(found: Boxes, truth: Boxes, label: int, thresholds: Sequence[float], limit: int,
             of: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores of one image's boxes of a class, falling, [found], and whether each has its true box, [thresholds, found]."""
    assert found.scores is not None
    own = found.labels == label
    scores = found.scores[own].double().numpy()
    order = np.argsort(-scores, kind="stable")[:limit]
    one, other = getattr(found, of)[own][order], getattr(truth, of)[truth.labels == label]
    iou = (overlaps(one.double(), other.double()) if of == "boxes" else mask_overlaps(one, other)).numpy()
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
