"""The small networks of the trials, and those that take a backbone by its name."""

from typing import Any

from torch import nn
from torch.nn import Module

from stillroom._compat import package
from stillroom.models.codec import Codec
from stillroom.models.codec import judges as judges_of_waves
from stillroom.models.detector import Detector, OneMap
from stillroom.models.segmenter import segmenter as built_segmenter


def mlp(inputs: int = 64, hidden: int = 32, classes: int = 10, dropout: float = 0.0, norm: bool = False) -> nn.Sequential:
    """[batch, …] with `inputs` numbers a sample → logits [batch, classes]; `norm`: of the batch, before the ReLU."""
    between = [nn.BatchNorm1d(hidden)] * norm + [nn.ReLU()] + [nn.Dropout(dropout)] * (dropout > 0)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), *between, nn.Linear(hidden, classes))


def cnn(width: int = 32, classes: int = 10, channels: int = 1, depth: int = 2) -> nn.Sequential:
    """Images [batch, channels, height, width] of any size → logits [batch, classes]; `depth` convolutions, doubling once."""
    layers: list[nn.Module] = []
    for i in range(depth):
        out = width * (2 if i else 1)
        layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, classes))


def segmenter(classes: int = 2, channels: int = 3, backbone: str = "", widths: tuple[int, ...] = (16, 32, 64),
              width: int = 32) -> Module:
    """Images [batch, channels, height, width] → logits [batch, classes, height, width]; over a `backbone` of timm, or its own."""
    return built_segmenter(classes, backbone, widths, width, channels)


def detector(dim: int = 512, heads: int = 2, backbone: str = "", widths: tuple[int, ...] = (16, 32, 64), width: int = 64,
             anchors: tuple[int, ...] = (16, 32, 64), side: int = 7, hidden: int = 1024, keep: tuple[int, int] = (1000, 300),
             sample: int = 256, mask: int = 0) -> Module:
    """A `Detector` of embeddings [regions, dim], over a ResNet of torchvision and its pyramid by the name `backbone`, where every
    map has one of the sides `anchors`, or over one map of its own with all of them. `mask`: width of a head of masks."""
    known: dict[str, Any] = {"heads": heads, "side": side, "hidden": hidden, "keep": keep, "sample": sample, "mask": mask}
    if not backbone:
        return Detector(OneMap(widths, width), width, dim, anchors=(anchors,), **known)
    package("torchvision")
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    maps = ("0", "1", "2", "3", "pool")
    return Detector(resnet_fpn_backbone(backbone_name=backbone, weights=None), 256, dim, maps=maps[:4], **known,
                    anchors=tuple((anchors[min(n, len(anchors) - 1)],) for n in range(len(maps))))


def codec(filters: int = 64, strides: tuple[int, ...] = (8, 5, 4, 2), dim: int = 1024, codes: int = 1024, quantisers: int = 8,
          layers: int = 2) -> Module:
    """Waves [batch, samples] → a wave and the codes in between; the paper's sizes, `models.codec.Codec`."""
    return Codec(filters, strides, dim, codes, quantisers, layers)


def judges(width: int = 32, periods: tuple[int, ...] = (2, 3, 5, 7, 11), scales: int = 3,
           sizes: tuple[int, ...] = (1024, 2048, 512, 256, 128)) -> Module:
    """Of a codec: waves [batch, samples] → what each judge says of them and the maps on its way."""
    return judges_of_waves(width, periods, scales, sizes)
