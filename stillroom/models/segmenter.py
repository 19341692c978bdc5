"""Networks that give every pixel a class: an encoder, a feature pyramid over its maps, a linear layer."""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module

from stillroom._compat import package
from stillroom.errors import Refused


class Segmenter(Module):
    """Images [batch, channels, height, width] → logits [batch, classes, height, width].

    encoder    images → a list of maps, each at most as large as the one before
    channels   of these maps
    width      of the pyramid

    From the smallest map on each level adds the one below it, enlarged (Lin et al. 2017); the levels, which `smooth.0`,
    `smooth.1`, … put out, are enlarged to the first and summed; `fused` puts out what `head` reads.
    """

    def __init__(self, encoder: Module, channels: list[int], classes: int, width: int = 32):
        super().__init__()
        self.encoder = encoder
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        self.fused = nn.ReLU()
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        sides = [lateral(m) for lateral, m in zip(self.lateral, self.encoder(x), strict=True)]
        for i in reversed(range(len(sides) - 1)):
            sides[i] = sides[i] + enlarged(sides[i + 1], sides[i])
        levels = [smooth(side) for smooth, side in zip(self.smooth, sides, strict=True)]
        total = levels[0] + sum(enlarged(level, levels[0]) for level in levels[1:])
        return enlarged(self.head(self.fused(total)), x)


class ConvEncoder(Module):
    """Stages of a convolution that halves the image and one that keeps it, group norm and ReLU after each; no batch statistics.

    [batch, channels, height, width] in [0, 1] → a list of maps at a half, a quarter, … of the resolution, of these widths.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), channels: int = 3):
        super().__init__()
        self.stages = nn.ModuleList()
        for width in widths:
            self.stages.append(nn.Sequential(*_block(channels, width, 2), *_block(width, width, 1)))
            channels = width

    def forward(self, x: Tensor) -> list[Tensor]:
        maps, x = [], 4 * x - 2                  # about mean 0 and deviation 1
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def segmenter(classes: int, backbone: str = "", widths: tuple[int, ...] = (16, 32, 64), width: int = 32, channels: int = 3,
              pretrained: bool = False) -> Segmenter:
    """A segmenter over any backbone of timm by its name, all its stages, or over a `ConvEncoder` of these widths without one.
    Raises `Refused` when timm is wanted and not there."""
    if not backbone:
        return Segmenter(ConvEncoder(widths, channels), list(widths), classes, width)
    encoder = package("timm").create_model(backbone, features_only=True, pretrained=pretrained, in_chans=channels)
    return Segmenter(encoder, encoder.feature_info.channels(), classes, width)


def enlarged(x: Tensor, like: Tensor) -> Tensor:
    """A map at the height and width of another one, or of masks [batch, height, width]. Raises `Refused` for other answers."""
    if like.ndim < 3:
        raise Refused("the answer of an image is no mask", "name masks:PATH; in Python give (image, classes [height, width])")
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear")


def _block(inputs: int, width: int, stride: int) -> list[Module]:
    return [nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.GroupNorm(max(1, width // 8), width), nn.ReLU()]
