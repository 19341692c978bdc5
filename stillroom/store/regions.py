"""Views that a teacher has labelled once, of which training draws a few: FKD's crops, dataset reinforcement's views."""

import math
import random
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset

from stillroom import ranks
from stillroom.batches import number
from stillroom.errors import Refused
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.teachers import Cached
from stillroom.parts.views import outside
from stillroom.store.views import Views, seeded
from stillroom.store.writing import write

CHUNK = 4096      # rows read at a time


def crop(x: Tensor, scale: tuple[float, float] = (0.08, 1.0), size: int = 0, flip: float = 0.5,
         ratio: tuple[float, float] = (3 / 4, 4 / 3)) -> Tensor:
    """A random box of one image, in whole pixels, resized and mirrored with probability `flip`: [channels, height, width] →
    [channels, size, size], or of the image's size when 0. `scale`, `ratio`: as in `views.crops`, which is for batches."""
    height, width = x.shape[-2:]
    top, left, h, w = box(height, width, scale, ratio)
    part = F.interpolate(x[None, ..., top : top + h, left : left + w], (size or height, size or width), mode="bilinear",
                         antialias=True)[0]
    return part.flip(-1) if random.random() < flip else part


def erase(x: Tensor, p: float = 0.25, scale: tuple[float, float] = (0.02, 1 / 3),
          ratio: tuple[float, float] = (0.3, 10 / 3)) -> Tensor:
    """A random box of one image, in whole pixels, filled with noise with probability `p`: see `views.erase`."""
    if random.random() >= p:
        return x
    top, left, h, w = box(x.shape[-2], x.shape[-1], scale, ratio)
    x = x.clone()
    x[..., top : top + h, left : left + w].uniform_()
    return x


def box(height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """top, left, height, width of a random part of an image: the first of ten draws that lies in it, else the whole."""
    for _ in range(10):
        area, shape = height * width * random.uniform(*scale), math.exp(random.uniform(*map(math.log, ratio)))
        h, w = max(1, round((area / shape) ** 0.5)), max(1, round((area * shape) ** 0.5))
        if h <= height and w <= width:
            return random.randint(0, height - h), random.randint(0, width - w), h, w
    return 0, 0, height, width


class Mixed(Dataset):
    """Views that are mixed with another sample's (Faghri et al. 2023, M*): each by mixup, CutMix, both or neither.

    mixup, cutmix   chances, drawn apart. Mixup leaves at least half to the sample itself: the other gets λ/2, λ even in [0, 1];
                    CutMix takes a box of a share of the area that is even in [0, 1]

    The other's view bears the same number, and is its own: it comes as `views` draws it. Labels are none (`UNLABELLED`).
    """

    def __init__(self, views: Views, mixup: float = 0.5, cutmix: float = 0.5):
        self.views, self.mixup, self.cutmix = views, mixup, cutmix
        self.data, self.count = views.data, views.count

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        x, y, *rest = self.views[i]
        seeded(number(self.views.seed, "mix", i))
        other, blend, pasted = random.randrange(len(self.data)), random.random() < self.mixup, random.random() < self.cutmix
        share, stays = random.random() / 2, outside(x[None], 1.0)[0]
        if blend or pasted:
            y = torch.full_like(torch.as_tensor(y), UNLABELLED)
            second = self.views[i - i % len(self.data) + other][0]
            x = torch.lerp(x, second, share) if blend else x
            x = torch.where(stays, x, second) if pasted else x
        return x, y, *rest


class Several(Dataset):
    """For each sample `each` of its views, drawn anew every time: (x [each, …], y, at [each]), `at` their numbers in `views`.

    kept  which views may be drawn, boolean [count · samples]; all when left out. A sample of which none is kept is left out; one
          of which too few are kept shows some twice
    raw   chance that a view is none of the stored ones but drawn by `usual` for this time alone: its number is −1
    """

    def __init__(self, views: Any, each: int = 1, kept: Tensor | None = None, raw: float = 0.0,
                 usual: Callable[[Tensor], Tensor] = crop):
        self.views, self.each, self.raw, self.usual = views, each, raw, usual
        shape = len(views.data), views.count
        self.kept = np.ones(shape, bool) if kept is None else np.ascontiguousarray(kept.numpy().reshape(shape[::-1]).T)
        self.samples = np.flatnonzero(self.kept.any(1))
        if not len(self.samples):
            raise Refused("no view is left: all of them were dropped", "lower the confidence from which a view is kept")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[Tensor, Any, Tensor]:
        place = int(self.samples[i])
        x, y = self.views.data[place][:2]
        own = np.flatnonzero(self.kept[place])
        drawn = islice(cycle(torch.randperm(len(own)).tolist()), self.each)
        at = [-1 if random.random() < self.raw else int(own[k]) * len(self.kept) + place for k in drawn]
        fresh = [self.usual(x) for j in at if j < 0]         # first, as stored views draw from seeds of their own
        return torch.stack([self.views[j][0] if j >= 0 else fresh.pop() for j in at]), y, torch.tensor(at)


def asked(folder: Path | None, teacher: Module, views: Any, codec: str, device: torch.device | str = "cpu") -> Cached:
    """What the teacher says of every view, asked once: in the folder where there is one, else in a temporary one that goes when
    the answer goes. A teacher that is `Cached` already was asked about these views before."""
    if isinstance(teacher, Cached):
        return teacher
    home = None if folder else TemporaryDirectory(prefix="stillroom-")

    def ask() -> str:
        return str(write(folder or home.name, teacher, views, codec=codec, device=str(device)))     # type: ignore[union-attr]
    told = Cached(ranks.once(ask) if folder else ask())
    told.home = home     # type: ignore[assignment]          # deleted together with it
    return told


def confidence(told: Cached) -> Tensor:
    """The teacher's largest probability of each stored view, [views]."""
    rows = torch.arange(len(told.rows)).split(CHUNK)
    return torch.cat([told.rows[part].dense().softmax(-1).amax(-1) for part in rows])
