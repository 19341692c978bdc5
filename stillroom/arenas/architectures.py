"""Small networks to choose from, for a teacher on scikit-learn's handwritten digits."""

import copy
import random
from collections.abc import Iterable
from functools import lru_cache

import torch
from torch.nn import Module

from stillroom.arenas.alone import Alone
from stillroom.arenas.cast import Cast
from stillroom.arenas.digits import digits
from stillroom.models.cells import OPERATIONS, CellNet
from stillroom.parts.evolution import within
from stillroom.run import Run

STEPS = 200        # of KD, for whoever is found or drawn
DRAWN = 10         # architectures that stand for chance
TEACHER = ["conv3"] * 6
SHARE = 0.4        # of the teacher's parameters that an architecture may have


class Cells:
    """Networks of one cell, used twice: 5⁶ = 15,625 of them (see `models.cells`). An architecture is a list of six words."""

    def __init__(self, width: int = 4, classes: int = 10, channels: int = 1):
        self.width, self.classes, self.channels = width, classes, channels

    def random(self) -> list[str]:
        return random.choices(OPERATIONS, k=6)

    def mutate(self, arch: list[str]) -> list[str]:
        edge = random.randrange(6)
        return [random.choice([o for o in OPERATIONS if o != word]) if i == edge else word for i, word in enumerate(arch)]

    def build(self, arch: list[str]) -> Module:
        return CellNet(arch, self.width, self.classes, self.channels)

    def cost(self, arch: list[str]) -> float:
        """Parameters."""
        with torch.device("meta"):
            return sum(p.numel() for p in self.build(arch).parameters())


def cells(seed: int = 0) -> Cast:
    """A space of cells, a teacher of it (3 × 3 convolutions on all edges, trained on every clean label), the digits with two
    labels in five wrong.

    limit      SHARE of the teacher's parameters
    steps      of KD, the budget of all
    drawn()    DRAWN architectures within the limit, and the accuracy that each reaches after KD
    ranks(of)  Spearman's correlation of some number for each of the drawn with the accuracy that it reaches
    largest()  the one of most parameters among fifty within the limit, after KD
    probe      64 images and classes, on which architectures are scored
    """
    ground, space = digits("noisy", seed), Cells()
    return Cast({"space": space, "teacher": copy.deepcopy(_teacher(seed)), "data": ground.actors["data"]},
                data=ground.data, space=space, limit=_limit(), steps=STEPS, valid=ground.valid, test=ground.test,
                accuracy=ground.accuracy, probe=tuple(t[:64] for t in ground.actors["data"].tensors),
                drawn=lambda: _drawn(seed), ranks=lambda of: _ranks(of, seed), largest=lambda: _largest(seed))


def _limit() -> float:
    return SHARE * Cells().cost(TEACHER)


@lru_cache(maxsize=4)
def _teacher(seed: int) -> Module:
    torch.manual_seed(seed)
    return Alone(steps=300)(Run(seed=seed), student=Cells().build(TEACHER), data=digits("clean", seed).actors["data"])


def _reached(arch: list[str], seed: int) -> Module:
    """A network of the architecture after KD, as the winner of a search is taught."""
    from stillroom.recipes.classification.kd import KD  # which stands on the digits itself

    torch.manual_seed(seed)
    return KD(steps=STEPS)(Run(seed=seed), student=Cells().build(arch), teacher=copy.deepcopy(_teacher(seed)),
                           data=digits("noisy", seed).actors["data"])


@lru_cache(maxsize=4)
def _drawn(seed: int) -> tuple[list[list[str]], list[float]]:
    archs, judge = _some(DRAWN, seed), digits("noisy", seed).accuracy
    return archs, [judge(_reached(arch, seed)) for arch in archs]


def _ranks(of: Iterable[float], seed: int) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(list(of), _drawn(seed)[1]).statistic)


@lru_cache(maxsize=4)
def _largest(seed: int) -> Module:
    return _reached(max(_some(50, seed), key=Cells().cost), seed)


def _some(number: int, seed: int) -> list[list[str]]:
    random.seed(seed)
    return [within(Cells(), Cells().random, _limit()) for _ in range(number)]
