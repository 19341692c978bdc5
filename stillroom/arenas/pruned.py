"""Handwritten digits, one label in five wrong, of which a part is kept; the teacher, the student's twin, saw all labels right."""

import copy
from functools import lru_cache, partial

import torch
from torch.nn import Module
from torch.utils.data import TensorDataset

from stillroom.arenas.alone import Alone
from stillroom.arenas.cast import Cast, variant
from stillroom.arenas.digits import split
from stillroom.measure import accuracy
from stillroom.models.small import mlp
from stillroom.run import Run

WRONG = 0.2      # share of the labels


def pruned(seed: int = 0) -> Cast:
    """Student and teacher (an MLP of 64 each), data and judges.

    other(**fields)  what the trial of KD on pruned data makes with these fields changed
    """
    ground = split("clean", seed)
    x, y = ground.train.tensors
    draw = torch.Generator().manual_seed(seed)
    given = torch.where(torch.rand(len(y), generator=draw) < WRONG, (y + torch.randint(1, 10, y.shape, generator=draw)) % 10, y)
    actors = {"student": _net(1000 + seed), "teacher": copy.deepcopy(_teacher(seed)), "data": TensorDataset(x, given)}
    return Cast(actors, data="scikit-learn digits, one label in five wrong", valid=ground.valid, test=ground.test,
                accuracy=lambda net: accuracy(net, ground.test), other=partial(variant, "data_pruning_kd", seed))


def _net(seed: int) -> Module:
    torch.manual_seed(seed)
    return mlp(hidden=64)


@lru_cache(maxsize=4)
def _teacher(seed: int) -> Module:
    return Alone(steps=600)(Run(seed=seed), student=_net(seed), data=split("clean", seed).train)
