"""Handwritten digits in random crops: a convolutional teacher and a small student that see a part of the image at a time."""

import copy
from functools import lru_cache, partial

import torch
from torch.nn import Module
from torch.utils.data import TensorDataset

from stillroom.arenas.alone import Alone
from stillroom.arenas.cast import Cast, variant
from stillroom.arenas.digits import split
from stillroom.measure import accuracy
from stillroom.models.small import cnn, mlp
from stillroom.parts import views
from stillroom.run import Run

LEAST = 0.2      # smallest share of the image in a crop


def regions(seed: int = 0) -> Cast:
    """Student (an MLP of 64), teacher (a convolutional net, taught every label on crops), data and judges, on whole images.

    other(**fields)  what FerKD's trial makes with these fields changed
    """
    ground = split("clean", seed)
    actors = {"student": _student(seed), "teacher": copy.deepcopy(_teacher(seed)), "data": ground.train}
    return Cast(actors, data="scikit-learn digits, in crops", valid=ground.valid, test=ground.test,
                accuracy=lambda net: accuracy(net, ground.test), other=partial(variant, "ferkd", seed))


def _student(seed: int) -> Module:
    torch.manual_seed(1000 + seed)
    return mlp(hidden=64)


@lru_cache(maxsize=4)
def _teacher(seed: int) -> Module:
    torch.manual_seed(seed)
    x, y = split("clean", seed).train.tensors
    crops = TensorDataset(torch.cat([x, *views.crops(x, 4, (LEAST, 1.0))]), y.repeat(5))
    return Alone(steps=300)(Run(seed=seed), student=cnn(width=16), data=crops)
