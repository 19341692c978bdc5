"""Graphs of ink: the dark pixels of handwritten zeros and ones, real images that come with scikit-learn."""

from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from stillroom.arenas.cast import Cast
from stillroom.measure.graphs import some_of_each, teaches
from stillroom.models.graph import GraphNet, Kind
from stillroom.parts.graphs import Graph, Graphs, graph, pack

DARK = 5          # of 16: from here on a pixel is ink
SHARE = 0.02      # of the nodes: what a distilled set may have, and what the real graphs beside it have


def ink(seed: int = 0, kind: Kind = "gin") -> Cast:
    """Zeros and ones as graphs without labels: a node for every dark pixel, an edge between neighbours in a row or column.

    teaches(graphs, y, weight)   test accuracy of five new networks taught by these alone
    some()                       the same by real graphs of SHARE of the nodes or a little more, mean of ten draws, a network each
    everything()                 the same by all of them, two networks
    """
    train, test = _ground(seed)
    judge = partial(teaches, model=partial(GraphNet, kind, labels=1, classes=2, width=32), test=test, seed=seed)
    return Cast({"data": train}, data="graphs of scikit-learn's digits, 0 against 1", train=train, test=test,
                nodes=sum(g.nodes for g in train.graphs), teaches=lambda *made, nets=5: judge(*made, nets=nets)[0],
                some=lambda: _some(seed, kind), everything=lambda: _everything(seed, kind))


def inked(image: np.ndarray) -> Graph:
    """The graph of one image [height, width]."""
    dark = image > DARK
    number = dark.cumsum().reshape(image.shape) - 1
    pairs = [pair for one, other in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:]))       # in a row, in a column
             for pair in zip(number[one][dark[one] & dark[other]], number[other][dark[one] & dark[other]], strict=True)]
    return graph([0] * int(dark.sum()), pairs)


@lru_cache(maxsize=4)
def _ground(seed: int) -> tuple[Graphs, Graphs]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits(n_class=2)
    data = Graphs([inked(image) for image in raw.images], torch.tensor(raw.target))
    train, test = train_test_split(range(len(data)), test_size=1 / 3, stratify=raw.target, random_state=seed)
    return data.take(train), data.take(test)


@lru_cache(maxsize=8)
def _some(seed: int, kind: Kind) -> float:
    cast = ink(seed, kind)
    torch.manual_seed(seed)
    draws = [some_of_each(cast.train, SHARE * cast.nodes) for _ in range(10)]
    return float(np.mean([cast.teaches(*draw, nets=1) for draw in draws]))


@lru_cache(maxsize=8)
def _everything(seed: int, kind: Kind) -> float:
    cast = ink(seed, kind)
    everything: tuple[Graph, Tensor, Tensor] = pack(cast.train.graphs), cast.train.targets, torch.ones(len(cast.train))
    return cast.teaches(*everything, nets=2)
