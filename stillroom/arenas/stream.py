"""Handwritten digits as a stream: two classes, then two others, until all ten have come; each image once."""

from functools import lru_cache, partial

import torch
from torch.nn import Module
from torch.utils.data import TensorDataset

from stillroom.arenas.cast import Cast, variant
from stillroom.arenas.digits import split
from stillroom.arenas.replay import Replay
from stillroom.measure import accuracy
from stillroom.models.small import mlp
from stillroom.run import Run


def stream(seed: int = 0) -> Cast:
    """Student (an MLP of 100) and five tasks of some 240 images each.

    accuracy(net)    on 500 test images of all classes, in percent
    early(net)       on those of the first eight, among all ten
    replay()         experience replay of as many samples, cross-entropy over all classes, rate and view chosen for itself
    other(**fields)  what the trial of HPCR makes with these fields changed
    """
    ground = split("clean", seed)
    tasks = [part(ground.train, (first, first + 1)) for first in range(0, 10, 2)]
    return Cast({"student": _net(seed), "tasks": tasks}, data="scikit-learn digits, two classes after two",
                accuracy=lambda net: accuracy(net, ground.test),
                early=lambda net: accuracy(net, part(ground.test, tuple(range(8)))),
                replay=lambda: _replay(seed), other=partial(variant, "hpcr", seed))


def part(data: TensorDataset, classes: tuple[int, ...]) -> TensorDataset:
    """The samples of some classes, in their order."""
    x, y = data.tensors
    own = torch.isin(y, torch.tensor(classes))
    return TensorDataset(x[own], y[own])


def _net(seed: int) -> Module:
    torch.manual_seed(1000 + seed)
    return mlp(hidden=100)


@lru_cache(maxsize=16)
def _replay(seed: int, lr: float = 0.02, memory: int = 100, least: float = 1.0) -> Module:
    return Replay(memory=memory, least=least, lr=lr)(Run(seed=seed), **stream(seed).actors)
