"""Handwritten digits, two labels in five wrong: two teachers of the right ones, a student taught by the given."""

import copy
from dataclasses import replace
from functools import lru_cache

import torch
from torch.nn import Module

from stillroom.arenas.alone import Alone
from stillroom.arenas.cast import Cast
from stillroom.arenas.digits import split
from stillroom.measure import accuracy
from stillroom.models.small import cnn, mlp
from stillroom.parts.teachers import Ensemble
from stillroom.run import Run

STEPS = 600      # of what follows on the student's start, by whatever method: the budget of the trials


def ensemble(seed: int = 0, trained: bool = True) -> Cast:
    """Student (an MLP of 32), two convolutional teachers, data and judges. `trained`: it has learnt the given labels a while.

    alone()         the student taught (on) by the given labels
    kd(number)      the same by plain KD, labels left out, from teacher 0 or 1
    """
    ground, (first, second) = split("noisy", seed), teachers(seed)
    actors = {"student": copy.deepcopy(start(seed, trained)), "teacher": copy.deepcopy(first),
              "others": [copy.deepcopy(second)], "data": ground.train}
    return Cast(actors, data="scikit-learn digits, noisy", valid=ground.valid, test=ground.test,
                accuracy=lambda net: accuracy(net, ground.test), alone=lambda: _alone(seed, trained),
                kd=lambda number: _kd(seed, trained, number))


def reinforced(seed: int = 0) -> Cast:
    """The same, where the student knows nothing yet and sees views.

    labels()  the student taught by the given labels on views as the method stores them
    live()    the same by the live teachers on new views, without labels
    """
    cast = ensemble(seed, trained=False)
    return Cast(cast.actors, data=cast.data, valid=cast.valid, test=cast.test, accuracy=cast.accuracy,
                labels=lambda: _on_views(seed, live=False), live=lambda: _on_views(seed, live=True))


@lru_cache(maxsize=8)
def _on_views(seed: int, live: bool) -> Module:
    from stillroom.recipes.classification.dataset_reinforcement import trial  # which stands on this ground itself
    from stillroom.recipes.classification.kd import KD

    method, cast = trial(seed)
    student, data = cast.actors["student"], cast.actors["data"]
    budget = {"lr": method.lr, "decay": method.decay, "batch": method.batch, "steps": method.steps}
    if live:
        views = replace(method, samples=1 + method.batch * method.steps // len(data)).views(data, seed + 1)    # none comes twice
        return KD(temperature=1.0, alpha=1.0, **budget)(Run(seed=seed), student=student, teacher=Ensemble(teachers(seed)),
                                                        data=views)
    return Alone(**budget)(Run(seed=seed), student=student, data=method.views(data, seed))


@lru_cache(maxsize=4)
def teachers(seed: int) -> tuple[Module, Module]:
    """Two convolutional nets of different depth, each taught every right label."""
    torch.manual_seed(seed)
    nets = [cnn(width=16), cnn(width=12, depth=3)]
    first, second = (Alone(steps=300)(Run(seed=seed + i), student=net, data=split("clean", seed).train)
                     for i, net in enumerate(nets))
    return first, second


@lru_cache(maxsize=8)
def start(seed: int, trained: bool) -> Module:
    """The student before anything of the trial happens to it; trained for so short that the wrong labels can still teach it."""
    torch.manual_seed(1000 + seed)
    net = mlp(hidden=32)
    return Alone(steps=100)(Run(seed=seed), student=net, data=split("noisy", seed).train) if trained else net


@lru_cache(maxsize=4)
def _alone(seed: int, trained: bool) -> Module:
    return Alone(steps=STEPS)(Run(seed=seed), student=copy.deepcopy(start(seed, trained)), data=split("noisy", seed).train)


@lru_cache(maxsize=4)
def _kd(seed: int, trained: bool, number: int) -> Module:
    from stillroom.recipes.classification.kd import KD

    return KD(steps=STEPS, alpha=1.0)(Run(seed=seed), student=copy.deepcopy(start(seed, trained)),
                                      teacher=copy.deepcopy(teachers(seed)[number]), data=split("noisy", seed).train)
