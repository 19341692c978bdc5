"""A hundred handwritten digits, ten a class, and transformers of sixteen patches: what does a network know before it learns?"""

from functools import lru_cache

import torch
from torch.nn import Module
from torch.utils.data import TensorDataset

from stillroom.arenas.cast import Cast
from stillroom.arenas.digits import split
from stillroom.measure import accuracy
from stillroom.models.convit import ConViT
from stillroom.run import Run


def hundred(seed: int = 0) -> Cast:
    """Student (three local blocks of nine heads, and one that attends by content), a hundred labelled images, and the judge.

    plain()   a transformer of the same shape without places in its attention, learned as the trial has it
    """
    ground = split("clean", seed)
    x, y = ground.train.tensors
    some = torch.cat([(y == c).nonzero().flatten()[:10] for c in range(10)])
    return Cast({"student": _student(3, seed), "data": TensorDataset(x[some], y[some])}, data="scikit-learn digits, ten a class",
                valid=ground.valid, test=ground.test, accuracy=lambda net: accuracy(net, ground.test), plain=lambda: _plain(seed))


def _student(local: int, seed: int) -> Module:
    torch.manual_seed(1000 + seed)
    return ConViT(image=8, patch=2, channels=1, dim=36, depth=4, heads=9, local=local, classes=10)


@lru_cache(maxsize=4)
def _plain(seed: int) -> Module:
    from stillroom.recipes.classification.convit import trial  # which stands on this ground itself

    method, cast = trial(seed)
    return method(Run(seed=seed), student=_student(0, seed), data=cast.actors["data"])
