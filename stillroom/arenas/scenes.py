"""Shaded scenes, in each a handwritten digit of one colour on ground of another: find it, though light and dark say nothing."""

import copy
import math
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils.data import TensorDataset

from stillroom.arenas.cast import Cast
from stillroom.arenas.digits import split
from stillroom.measure.boxes import corloc
from stillroom.models.vit import ViT
from stillroom.parts.cuts import bounds, component
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.taps import Tap, keys
from stillroom.recipes.selfsup.dino import DINO
from stillroom.run import Run

SIDE, PATCH, DIGIT = 32, 4, 16      # pixels
LIGHT = 0.5                         # log of how much it brightens or darkens
NOISE = 0.05
DEPTH, HEADS = 2, 3                 # of the teacher
CENTRE = [(SIDE - DIGIT) // 2] * 2 + [DIGIT] * 2


def scenes(seed: int = 0) -> Cast:
    """Teacher (a small transformer, self-distilled by DINO on other scenes), images without labels, and judges.

    corloc(boxes)        share of images whose object is found, in percent
    lost(threshold)      LOST (Siméoni et al. 2021) on the teacher's keys; patches are alike above this cosine, 0 in the paper
    attention()          the patches to which the class token attends most
    centre()             a box as large as a digit in the middle
    everything()         the whole image
    untrained            the teacher as it began
    """
    ground, untrained, teacher = _ground(seed)
    x, boxes = ground["test"]
    return Cast({"teacher": copy.deepcopy(teacher), "data": _unlabelled(x)}, data="scikit-learn digits in drawn scenes",
                real=False, untrained=copy.deepcopy(untrained), valid=ground["valid"], test=ground["test"],
                corloc=partial(corloc, truth=list(boxes[:, None])), lost=partial(_lost, teacher, x),
                attention=lambda: _attention(teacher, x), centre=lambda: torch.tensor(CENTRE).expand(len(x), 4),
                everything=lambda: torch.tensor([0, 0, SIDE, SIDE]).expand(len(x), 4))


def drawn(digits: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Scenes [n, 3, height, width] around digits [n, 1, 8, 8], and the box of each digit's ink [n, 4] in pixels.

    Ground and digit have one brightness and nearly opposite hues; the light on both falls from one side, and in spots.
    """
    draw, n = torch.Generator().manual_seed(seed), len(digits)
    hue = 2 * math.pi * torch.rand(n, generator=draw)
    other = hue + math.pi * (1 + 0.8 * (torch.rand(n, generator=draw) - 0.5))
    turn = 2 * math.pi * torch.rand(n, 1, 1, generator=draw)
    down, right = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")
    spots = F.interpolate(2 * torch.rand(n, 1, 4, 4, generator=draw) - 1, size=SIDE, mode="bicubic", align_corners=True)
    light = torch.exp(LIGHT * ((turn.cos() * down + turn.sin() * right)[:, None] / 2 + spots))       # [n, 1, height, width]
    ink = torch.zeros(n, 1, SIDE, SIDE)
    place = torch.randint(0, SIDE - DIGIT + 1, (n, 2), generator=draw).tolist()
    large = (1.5 * F.interpolate(digits, size=DIGIT, mode="bilinear")).clamp(max=1)
    for one, digit, (top, left) in zip(ink, large, place, strict=True):
        one[:, top : top + DIGIT, left : left + DIGIT] = digit
    x = 0.6 * light * torch.lerp(_colour(hue), _colour(other), ink)
    boxes = torch.stack([bounds(one[0] > 0.5) for one in ink])
    return (x + NOISE * torch.randn(x.shape, generator=draw)).clamp(0, 1), boxes


def _colour(hue: Tensor) -> Tensor:
    """Of mean 0.5 over the channels, [n, 3, 1, 1]."""
    red, blue = torch.tensor([1.0, -1, 0]) / math.sqrt(2), torch.tensor([1.0, 1, -2]) / math.sqrt(6)
    return (0.5 + 0.25 * (hue.cos()[:, None] * red + hue.sin()[:, None] * blue))[..., None, None]


def _unlabelled(x: Tensor) -> TensorDataset:
    return TensorDataset(x, torch.full((len(x),), UNLABELLED))


@lru_cache(maxsize=4)
def _ground(seed: int) -> tuple[dict[str, tuple[Tensor, Tensor]], Module, Module]:
    """Images and boxes of every split; the encoder as it began, and self-distilled on the training images."""
    digits = split("clean", seed)
    ground = {part: drawn(getattr(digits, part).tensors[0], 3 * seed + i) for i, part in enumerate(("train", "valid", "test"))}
    x = ground["train"][0]
    torch.manual_seed(seed)
    net = ViT(image=SIDE, patch=PATCH, channels=3, dim=48, depth=DEPTH, heads=HEADS, mean=x.mean().item(), std=x.std().item())
    dino = DINO(prototypes=256, hidden=128, bottleneck=32, small=2, large_size=SIDE, small_size=SIDE // 2, border=0.6, least=0.3,
                flip=0.0, colour=0.0, sharp_end=0.04, momentum=0.96, lr=5e-3, batch=32, steps=150)
    return ground, copy.deepcopy(net).eval(), dino(Run(seed=seed), student=net, data=_unlabelled(x))


@torch.no_grad()
def _lost(teacher: Module, x: Tensor, threshold: float = 0.4, near: int = 2) -> list[Tensor]:
    """Boxes by LOST (sec. 3): the seed is the patch that resembles fewest others; of the `near` patches next in that order those
    that resemble it join it; the object is what resembles them in sum, and hangs together with the seed."""
    found = []
    for key in F.normalize(keys(teacher, x, PATCH).flatten(1, 2), dim=-1):
        alike = key @ key.T - threshold                                              # [patches, patches]
        order = (alike >= 0).sum(1).argsort(stable=True)
        seed = int(order[0])
        joined = order[:near][alike[seed, order[:near]] >= 0]
        mask = alike[joined].sum(0) >= 0
        mask[seed] = True
        found.append(PATCH * bounds(component(mask.reshape(SIDE // PATCH, -1), seed)))
    return found


@torch.no_grad()
def _attention(teacher: Module, x: Tensor, share: float = 0.6) -> list[Tensor]:
    """Boxes by the last block's attention of the class token, mean over heads: the patches that hold this share of it, as far as
    they hang together with the highest (Caron et al. 2021, fig. 4)."""
    qkv = Tap(teacher, f"blocks.{DEPTH - 1}.qkv")(x)[1][0].unflatten(-1, (3, HEADS, -1))
    q, k, _ = qkv.permute(2, 0, 3, 1, 4)                                             # [batch, heads, tokens, dim]
    weight = (q[:, :, :1] @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)[:, :, 0, 1:].mean(1)
    weight = weight / weight.sum(1, keepdim=True)
    found = []
    for one in weight:
        value, order = one.sort(descending=True)
        mask = torch.zeros(len(one), dtype=torch.bool).index_fill(0, order[value.cumsum(0) - value < share], True)
        found.append(PATCH * bounds(component(mask.reshape(SIDE // PATCH, -1), int(order[0]))))
    return found
