"""Small real images to be distilled into a few, and fresh networks to be taught by them."""

from functools import lru_cache

import torch
from torch.utils.data import TensorDataset

from stillroom.arenas.cast import Cast
from stillroom.arenas.digits import digits
from stillroom.batches import whole
from stillroom.measure.synthetic import some_of_each, teaches
from stillroom.models.convnet import ConvNet
from stillroom.parts import whiten

RATES = (0.01, 0.03, 0.1)      # for real images there is no learnt rate: they get the best of these on the validation images
VIEWS = "crop_scale_rotate"    # kinds of augmentation that leave a digit what it is


def synthetic(seed: int = 0, per_class: int = 1, zca: float = 0.0) -> Cast:
    """Handwritten digits with every label, a small ConvNet, and what it learns from few images: made ones, real ones, all.

    zca      ε of ZCA whitening, with which the made images were made: the judge whitens the test images alike
    teaches  test accuracy of networks taught by pixels, labels and rate
    looks    pixels as images to be looked at
    drawn, everything: real images, not whitened: as many, all
    """
    ground = digits("clean", seed)
    white = whiten.zca(ground.actors["data"].tensors[0], zca) if zca else None

    def judge(pixels, labels, rate, test=ground.test, steps=100, nets=3):
        if white:
            test = TensorDataset(whiten.apply(test.tensors[0], white), test.tensors[1])
        return teaches(pixels, labels, float(rate), model=_net(), test=test, steps=steps, nets=nets, augment=VIEWS, seed=seed)[0]

    return Cast({"model": _net(), "data": ground.actors["data"]}, data="scikit-learn digits, clean", test=ground.test,
                teaches=judge, looks=lambda pixels: whiten.invert(pixels, white) if white else pixels,
                drawn=lambda: _drawn(seed, per_class), everything=lambda: _everything(seed))


def _net() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(channels=1, size=8, width=16, depth=2)


@lru_cache(maxsize=4)
def _drawn(seed: int, per_class: int) -> float:
    """As many real images, drawn at random: the best of five draws, each with the rate that is best on the validation images."""
    ground, cast = digits("clean", seed), synthetic(seed, per_class)
    torch.manual_seed(seed)
    found = []
    for _ in range(5):
        x, y = some_of_each(ground.actors["data"], per_class)
        best = max(RATES, key=lambda rate: cast.teaches(x, y, rate, test=ground.valid, nets=1))
        found.append(cast.teaches(x, y, best))
    return max(found)


@lru_cache(maxsize=4)
def _everything(seed: int) -> float:
    """All real training images, as a measure of what was lost."""
    cast = synthetic(seed)
    return cast.teaches(*whole(cast.actors["data"]), 0.03, steps=300, nets=1)
