"""Handwritten digits, odd or even: two classes of five kinds each, which the labels do not tell apart."""

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
from stillroom.parts.heads import Subclasses
from stillroom.run import Run

SEEN = 400      # images that the student sees; the teacher has seen all


def parity(seed: int = 0) -> Cast:
    """Student (an MLP of 32), teacher (a convolutional net that was taught the parity of every training image), data and judges.

    other(**fields)  what LELP's trial makes with these fields changed
    known()          the student taught which digit it is, by labels, with the same budget, and read as odd or even
    """
    ground = split("clean", seed)
    splits = (ground.train, ground.valid, ground.test)
    train, valid, test = (TensorDataset(x, y % 2) for x, y in (part.tensors for part in splits))
    some = TensorDataset(*(t[:SEEN] for t in train.tensors))
    return Cast({"student": _student(seed), "teacher": copy.deepcopy(_teacher(seed)), "data": some},
                data="scikit-learn digits, odd or even, 400 images", valid=valid, test=test,
                accuracy=lambda net: accuracy(net, test), other=partial(variant, "lelp", seed),
                known=lambda: _known(seed))


def _student(seed: int) -> Module:
    torch.manual_seed(1000 + seed)
    return mlp(hidden=32, classes=2)


@lru_cache(maxsize=4)
def _teacher(seed: int) -> Module:
    torch.manual_seed(seed)
    x, y = split("clean", seed).train.tensors
    return Alone(steps=300)(Run(seed=seed), student=cnn(width=16, classes=2), data=TensorDataset(x, y % 2))


@lru_cache(maxsize=4)
def _known(seed: int) -> Module:
    from stillroom.recipes.classification.lelp import trial

    method, cast = trial(seed)
    x, y = (t[:SEEN] for t in split("clean", seed).train.tensors)
    student = Subclasses(cast.actors["student"], x[:2], 5)
    five = y % 2 * 5 + y // 2                                                # even digits are subclasses 0 to 4, odd ones 5 to 9
    Alone(lr=method.lr, decay=method.decay, batch=method.batch, steps=method.steps)(
        Run(seed=seed), student=torch.nn.Sequential(student.body, student.head), data=TensorDataset(x, five))
    return student.eval()
