"""Handwritten digits, then the same digits turned: two tasks of the same classes, whose difference is an angle."""

import math
from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils.data import TensorDataset

from stillroom.arenas.cast import Cast
from stillroom.arenas.digits import split
from stillroom.models.small import mlp
from stillroom.run import Run


def rotated(seed: int = 0, angle: float = 90.0) -> Cast:
    """Student (an MLP of 100), two tasks and their exams, of 500 images each that nobody learns from.

    other(angle, **fields)  what the trial of the stability gap makes with another angle and these fields changed
    """
    ground = split("clean", seed)
    actors = {"student": _net(seed), "tasks": [ground.train, turned(ground.train, angle)],
              "exams": [ground.test, turned(ground.test, angle)]}
    return Cast(actors, data=f"scikit-learn digits, then the same turned by {angle:g}°",
                other=lambda angle=angle, **fields: _other(seed, angle, tuple(fields.items())))


def turned(data: TensorDataset, angle: float) -> TensorDataset:
    """The images turned by `angle` degrees about their middle, bilinear; what lies outside is black."""
    x, y = data.tensors
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    grid = F.affine_grid(torch.tensor([[c, -s, 0.0], [s, c, 0.0]]).expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return TensorDataset(F.grid_sample(x, grid, align_corners=False), y)


def _net(seed: int) -> Module:
    torch.manual_seed(1000 + seed)
    return mlp(hidden=100)


@lru_cache(maxsize=16)
def _other(seed: int, angle: float, fields: tuple) -> tuple[Module, Tensor]:
    from stillroom.recipes.continual.stability_gap import trial  # which stands on this ground itself

    method, _ = trial(seed)
    return replace(method, **dict(fields))(Run(seed=seed), **rotated(seed, angle).actors)
