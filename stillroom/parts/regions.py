"""Regions and names: what a two-tower teacher says of boxes and of classes, and how a detector's two heads are joined."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.parts.boxes import crops, overlaps, widened


def name_embeddings(encode: Callable[[list[str]], Tensor], names: Sequence[str],
                    templates: Sequence[str] = ("a photo of a {}.",)) -> Tensor:
    """One vector of unit length for each name: the mean, normalised, of those of all templates, each normalised before
    (Radford et al. 2021, sec. 3.1.4). encode: texts → [texts, dim]; a template has {} where the name goes. [names, dim]"""
    said = [F.normalize(encode([template.format(name) for name in names]).float(), dim=1) for template in templates]
    return F.normalize(torch.stack(said).mean(0), dim=1)


def crop_embeddings(encode: Callable[[Tensor], Tensor], image: Tensor, boxes: Tensor, side: int) -> Tensor:
    """What the image tower sees in each box and in one half as large again around it: embeddings normalised, summed, normalised.

    encode: [n, channels, side, side] → [n, dim]; image [channels, height, width], boxes [n, 4] → [n, dim].
    """
    views = [crops(image, widened(boxes, factor, (image.shape[1], image.shape[2])), side) for factor in (1.0, 1.5)]
    return F.normalize(torch.stack([F.normalize(encode(view).float(), dim=1) for view in views]).sum(0), dim=1)


def apart(region: Tensor, crop: Tensor) -> Tensor:
    """Σ |v − r| over the dimensions, mean over regions: both [regions, dim], of unit length; between 0 and 2√dim; 0 of none."""
    return (region - crop).abs().sum() / max(1, len(crop))


def sampled(proposals: Tensor, boxes: Tensor, labels: Tensor, count: int, positive: float) -> tuple[Tensor, Tensor, Tensor]:
    """`count` proposals and true boxes, drawn: at most the share `positive` overlaps a true box with an IoU of 0.5 or more.

    proposals [n, 4], boxes [m, 4], labels [m] → regions [k, 4]; the class of each plus one, 0 for the background, [k]; and which
    true box it overlaps most, −1 where there is none, [k].
    """
    regions = torch.cat([proposals, boxes])
    near, at = torch.cat([regions.new_zeros(len(regions), 1), overlaps(regions, boxes)], 1).max(1)      # the first: no box
    on, some = near >= 0.5, torch.randperm(len(regions), device=regions.device)
    hits, misses = some[on[some]][: int(count * positive)], some[~on[some]]
    some = torch.cat([hits, misses[: count - len(hits)]])
    classes = torch.cat([labels.new_zeros(1), labels + 1])[at[some]]
    return regions[some], torch.where(on[some], classes, 0), at[some] - 1


def ensemble(text: Tensor, image: Tensor, base: Tensor, share: float = 2 / 3) -> Tensor:
    """Weighted geometric mean of two heads' probabilities: text^λ·image^(1 − λ) of base classes, the other way round of novel
    ones (Gu et al. 2022, eq. 5). text, image [regions, classes], base [classes] → [regions, classes]."""
    weight = torch.where(base, share, 1 - share)
    return text**weight * image ** (1 - weight)
