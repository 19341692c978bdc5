"""Handwritten digits without labels, judged by fifty that have one: what do features know that nobody taught them?"""

import copy

import torch
from torch import nn
from torch.nn import Module

from stillroom.arenas.cast import Cast
from stillroom.arenas.digits import split
from stillroom.measure.features import features, knn, linear_probe


def neighbours(seed: int = 0) -> Cast:
    """A small convolutional encoder, and fifty labelled images, five a class, by which test images are named.

    neighbours(net)  accuracy of the twenty nearest of the fifty, by the net's features
    probe(net)       accuracy of a linear classifier taught by the fifty, on the same features
    pixels           a net whose features are the pixels
    untrained        the encoder as it began
    """
    ground = split("few", seed)
    torch.manual_seed(1000 + seed)
    student = encoder()

    def judged(judge, net: Module) -> float:
        return judge(features(net, ground.labelled), features(net, ground.test))

    return Cast({"student": student, "data": ground.train}, data="scikit-learn digits, no labels in training",
                neighbours=lambda net: judged(knn, net), probe=lambda net: judged(linear_probe, net),
                pixels=nn.Flatten(), untrained=copy.deepcopy(student).eval())


def encoder(width: int = 16) -> nn.Sequential:
    """Images [batch, 1, height, width] → features [batch, 8·width]; no statistics of the batch in it.

    It ends in a norm, as the paper's transformers do: without it all features lie on one side and no cosine is small.
    """
    return nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.GroupNorm(1, width), nn.GELU(),
                         nn.Conv2d(width, 2 * width, 3, padding=1), nn.GroupNorm(1, 2 * width), nn.GELU(),
                         nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LayerNorm(8 * width))
