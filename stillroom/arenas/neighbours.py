"""Handwritten digits without labels, judged by their neighbours: does a feature put the same digits beside each other?"""

import copy

import torch
from torch import nn
from torch.nn import Module

from stillroom.arenas.cast import Cast
from stillroom.arenas.digits import digits
from stillroom.measure.features import features, knn


def neighbours(seed: int = 0) -> Cast:
    """A small convolutional encoder; fifty labelled images, five a class, are the neighbours that name the test images."""
    ground = digits("few", seed)
    torch.manual_seed(1000 + seed)
    student = encoder()

    def judge(net: Module) -> float:
        return knn(features(net, ground.labelled), features(net, ground.test), k=20)

    bank, asked = (data.tensors for data in (ground.labelled, ground.test))
    pixels = knn((bank[0].flatten(1), bank[1]), (asked[0].flatten(1), asked[1]), k=20)
    return Cast({"student": student, "data": ground.actors["data"]}, data="scikit-learn digits, no labels in training",
                neighbours=judge, pixels=pixels, untrained=copy.deepcopy(student).eval())


def encoder(width: int = 16) -> nn.Sequential:
    """Images [batch, 1, height, width] → features [batch, 8·width]; no statistics of the batch in it."""
    return nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.GroupNorm(1, width), nn.GELU(),
                         nn.Conv2d(width, 2 * width, 3, padding=1), nn.GroupNorm(1, 2 * width), nn.GELU(),
                         nn.AdaptiveAvgPool2d(2), nn.Flatten())
