"""Handwritten digits: 1,797 real 8 × 8 images that come with scikit-learn, in regimes where a teacher has something to give."""

import copy
from functools import lru_cache
from types import SimpleNamespace
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.data import TensorDataset

from stillroom.arenas.alone import Alone
from stillroom.arenas.cast import Cast
from stillroom.arenas.single import Single
from stillroom.measure import accuracy
from stillroom.models.small import cnn, mlp
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.run import Run

Regime = Literal["clean", "few", "noisy", "weak"]
SPLIT = (1197, 100, 500)      # train, valid (for tuning), test


def digits(regime: Regime = "few", seed: int = 0) -> Cast:
    """Student (an MLP of 32), teacher (a convolutional net, trained on every clean label), data and judges.

    clean   every training label is there and right
    few     fifty labels, five a class; the other training images come without
    noisy   two labels in five are wrong, drawn evenly from the other classes
    weak    as few, and the teacher has seen no more than thirty labels, of other images

    Baselines, with the budget of the trials: `alone` (labels only), `kd` (plain KD), `single` (labels
    and teacher on one head, in DHO's batches).
    """
    ground = split(regime, seed)
    teacher, student = copy.deepcopy(_teacher(regime, seed)), _fresh_student(seed)
    return Cast(
        {"student": student, "teacher": teacher, "data": ground.train},
        data=f"scikit-learn digits, {regime}", valid=ground.valid, test=ground.test, labelled=ground.labelled,
        accuracy=lambda net: accuracy(net, ground.test), alone=lambda: _alone(regime, seed),
        kd=lambda: _kd(regime, seed), single=lambda: _single(regime, seed),
    )


@lru_cache(maxsize=4)
def split(regime: Regime, seed: int) -> SimpleNamespace:
    """The images alone, nothing trained: train, labelled, valid, test; and taught, what the teacher may see."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    x, y = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 16, torch.tensor(raw.target)
    rest, test = train_test_split(range(len(x)), test_size=SPLIT[2], stratify=y, random_state=seed)
    train, valid = train_test_split(rest, test_size=SPLIT[1], stratify=y[rest], random_state=seed)
    clean = TensorDataset(x[train], y[train])
    given = y[train].clone()
    draw = torch.Generator().manual_seed(seed)
    taught = clean
    if regime in ("few", "weak"):
        order = torch.randperm(len(given), generator=draw)
        known = torch.cat([order[given[order] == c][:5] for c in range(10)])
        if regime == "weak":
            other = torch.cat([order[given[order] == c][5:8] for c in range(10)])
            taught = TensorDataset(x[train][other], y[train][other])
        given = torch.full_like(given, UNLABELLED).index_copy(0, known, given[known])
    elif regime == "noisy":
        wrong = torch.rand(len(given), generator=draw) < 0.4
        given = torch.where(wrong, (given + torch.randint(1, 10, given.shape, generator=draw)) % 10, given)
    elif regime != "clean":
        raise ValueError(f"regime {regime!r} is unknown: {', '.join(get_args(Regime))}")
    has = given != UNLABELLED
    return SimpleNamespace(
        train=TensorDataset(x[train], given), labelled=TensorDataset(x[train][has], given[has]),
        valid=TensorDataset(x[valid], y[valid]), test=TensorDataset(x[test], y[test]), taught=taught)


def shuffled(draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """All images [samples, 1, 8, 8] and their classes [samples], in an order that is drawn."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    order = torch.randperm(len(raw.target), generator=draw)
    return torch.tensor(raw.images, dtype=torch.float32)[order, None] / 16, torch.tensor(raw.target)[order]


@lru_cache(maxsize=4)
def _teacher(regime: Regime, seed: int) -> Module:
    torch.manual_seed(seed)
    return Alone(steps=300)(Run(seed=seed), student=cnn(width=16), data=split(regime, seed).taught)


def _fresh_student(seed: int) -> Module:
    torch.manual_seed(1000 + seed)
    return mlp(hidden=32)


@lru_cache(maxsize=4)
def _alone(regime: Regime, seed: int) -> Module:
    """The student taught by the labels alone, with the budget of the trials."""
    return Alone(steps=600)(Run(seed=seed), student=_fresh_student(seed), data=split(regime, seed).train)


@lru_cache(maxsize=4)
def _kd(regime: Regime, seed: int) -> Module:
    """The student taught by plain KD, with the budget of the trials."""
    from stillroom.recipes.classification.kd import KD  # which stands on this ground itself

    return KD(steps=600)(Run(seed=seed), student=_fresh_student(seed), teacher=copy.deepcopy(_teacher(regime, seed)),
                         data=split(regime, seed).train)


@lru_cache(maxsize=4)
def _single(regime: Regime, seed: int) -> Module:
    """The student taught by labels and teacher on one head, with the batches and the budget of DHO's trial."""
    return Single(lr=0.01, steps=600)(Run(seed=seed), student=_fresh_student(seed),
                                      teacher=copy.deepcopy(_teacher(regime, seed)), data=split(regime, seed).train)
