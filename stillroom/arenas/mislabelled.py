"""Handwritten digits, three labels in ten wrong: a teacher that learnt from them, too, and two hundred right ones held out."""

import copy
from functools import lru_cache
from types import SimpleNamespace

import torch
from torch.nn import Module
from torch.utils.data import TensorDataset

from stillroom.arenas.alone import Alone
from stillroom.arenas.cast import Cast
from stillroom.arenas.digits import shuffled
from stillroom.measure import accuracy
from stillroom.models.small import mlp
from stillroom.run import Run

TRAIN, VALID = 900, 200
WRONG = 0.3                            # share of the training labels
SHARES = (0.0, 0.3, 0.5, 0.7, 0.9)     # of the teacher: what a ratio for all is chosen from
STEPS = 560                            # updates: 40 passes


def mislabelled(seed: int = 0) -> Cast:
    """Student and teacher (an MLP of 64 each), data, the samples held out, and judges.

    fixed(share)  plain KD with one share of the teacher for all samples
    chosen()      that of the share in `shares` which is right most often on the samples held out
    both()        the student taught by all labels, those of the samples held out among them
    """
    ground = split(seed)
    actors = {"student": _net(1000 + seed), "teacher": copy.deepcopy(_teacher(seed)), "data": ground.train, "valid": ground.valid}
    return Cast(actors, data="scikit-learn digits, three labels in ten wrong", valid=ground.valid, test=ground.test,
                wrong=ground.wrong, shares=SHARES, accuracy=lambda net: accuracy(net, ground.test),
                fixed=lambda share: _fixed(seed, share), chosen=lambda: _chosen(seed), both=lambda: _both(seed))


@lru_cache(maxsize=4)
def split(seed: int) -> SimpleNamespace:
    """train; wrong, which of its labels are; valid and test, all right."""
    draw = torch.Generator().manual_seed(seed)
    x, y = shuffled(draw)
    (x, x_valid, x_test), (y, y_valid, y_test) = (t.tensor_split([TRAIN, TRAIN + VALID]) for t in (x, y))
    wrong = torch.rand(len(y), generator=draw) < WRONG
    given = torch.where(wrong, (y + torch.randint(1, 10, y.shape, generator=draw)) % 10, y)
    return SimpleNamespace(train=TensorDataset(x, given), wrong=wrong, valid=TensorDataset(x_valid, y_valid),
                           test=TensorDataset(x_test, y_test))


def _chosen(seed: int) -> Module:
    return max((_fixed(seed, share) for share in SHARES), key=lambda net: accuracy(net, split(seed).valid))


def _net(seed: int) -> Module:
    torch.manual_seed(seed)
    return mlp(hidden=64)


@lru_cache(maxsize=4)
def _teacher(seed: int) -> Module:
    return Alone(steps=STEPS)(Run(seed=seed), student=_net(seed), data=split(seed).train)


@lru_cache(maxsize=16)
def _fixed(seed: int, share: float) -> Module:
    from stillroom.recipes.classification.kd import KD

    return KD(alpha=share, steps=STEPS)(Run(seed=seed), student=_net(1000 + seed), teacher=copy.deepcopy(_teacher(seed)),
                                        data=split(seed).train)


@lru_cache(maxsize=4)
def _both(seed: int) -> Module:
    ground = split(seed)
    everything = TensorDataset(*(torch.cat(both) for both in zip(ground.train.tensors, ground.valid.tensors, strict=True)))
    return Alone(steps=STEPS)(Run(seed=seed), student=_net(1000 + seed), data=everything)
