"""Objects on a ground of one kind, to be found without labels: photographs of a table where they lie, else drawn scenes."""

import copy
import math
from collections.abc import Iterable
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module
from torch.utils.data import TensorDataset

from stillroom.arenas.cast import Cast
from stillroom.arenas.digits import split
from stillroom.errors import Refused
from stillroom.measure.boxes import corloc
from stillroom.measure.segmentation import saliency
from stillroom.models.vit import ViT, patchify
from stillroom.parts import bilateral
from stillroom.parts.cuts import bounds, component
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.taps import Tap, keys
from stillroom.recipes.selfsup.dino import DINO
from stillroom.run import Run
from stillroom.zoo import arrays
from stillroom.zoo.shared import home

SIDE, DIGIT = 32, 16                # of the drawn scenes and of the digits in them, in pixels
LIGHT = 0.5                         # log of how much it brightens or darkens
NOISE = 0.05
TABLE = 32, 120, 32, 128            # rows and columns of the photographs in which the table fills the ground
LEAST = 40                          # pixels of an object that counts
DEPTH, HEADS = 2, 3                 # of the teacher


class Part(NamedTuple):
    x: Tensor                       # [n, 3, height, width] in [0, 1]
    masks: Tensor                   # [n, height, width], True on the objects
    boxes: list[Tensor]             # of each image, [objects, 4]: of every object, and of objects that touch each other


class Ground(NamedTuple):
    train: Part                     # what the teacher learns from
    valid: Part                     # what all settings were chosen on
    test: Part
    words: str
    real: bool
    patch: int                      # side of the teacher's patches, in pixels
    dino: DINO                      # by which the teacher learns
    threshold: float                # of TokenCut on the teacher's keys
    untrained: float                # of TokenCut on the keys of the network as it began
    lost: tuple[float, int]         # of LOST: above which cosine patches are alike, and how many may join its seed
    share: float                    # of the attention that the patches of an object hold
    centre: float                   # of height and width, in the middle


def scenes(seed: int = 0) -> Cast:
    """Teacher (a small transformer, self-distilled by DINO on other images), images without labels, and judges.

    corloc(boxes)        share of images of which an object is found, or a pile of objects that touch each other, in percent
    outlined(maps)       IoU, F_β and accuracy of maps in pixels against the objects', in percent
    refined(masks)       maps in pixels of masks in patches, by the bilateral solver
    shown(maps)          some images, maps in pixels by name, and the objects, to be looked at
    lost(threshold, near)   masks by LOST (Siméoni et al. 2021) on the teacher's keys; the paper has 0 and 100
    attention()          masks: the patches to which the class token attends most
    centre(share)        boxes: this share of height and width, in the middle
    untrained, plain     the teacher as it began; a network whose keys are the pixels of the patches
    ground               images, and what was chosen on the validation images
    """
    ground = _ground(seed)
    untrained, teacher = _taught(seed)
    x, masks, boxes = ground.test
    return Cast(
        {"teacher": copy.deepcopy(teacher), "data": _unlabelled(x)}, data=ground.words, real=ground.real, ground=ground,
        corloc=partial(corloc, truth=boxes), outlined=lambda maps: saliency(maps, masks[: len(maps)]),
        refined=lambda found: [bilateral.solve(*pair) for pair in zip(x, enlarged(found, ground.patch), strict=True)],
        shown=partial(_shown, ground.test), lost=partial(_lost, teacher, ground), attention=lambda: _attention(teacher, ground),
        centre=partial(_centre, ground), untrained=copy.deepcopy(untrained), plain=Plain(ground.patch))


class Plain(Module):
    """Its keys are the pixels of each patch, less their mean over the image."""

    def __init__(self, patch: int):
        super().__init__()
        self.patch, self.key = patch, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        pixels = patchify(x, self.patch)
        return self.key(pixels - pixels.mean(1, keepdim=True))


def enlarged(masks: Iterable[Tensor], patch: int) -> list[Tensor]:
    """Masks of patches in pixels, each [rows·patch, columns·patch]."""
    return [mask.double().repeat_interleave(patch, 0).repeat_interleave(patch, 1) for mask in masks]


@lru_cache(maxsize=4)
def _ground(seed: int) -> Ground:
    try:
        learn, test = _table()
        words = f"mosd_rgbd, photographs cut to the table, {len(learn.x)} to learn from and {len(test.x)} to test"
        return Ground(learn, learn, test, words, True, patch=8, dino=_dino(48, border=0.4, least=0.1, flip=0.5, lr=2e-3),
                      threshold=0.9, untrained=0.9, lost=(0.1, 2), share=0.3, centre=0.5)
    except Refused:
        digits = split("clean", seed)
        train, valid, test = (drawn(part.tensors[0], 3 * seed + i)
                              for i, part in enumerate((digits.train, digits.valid, digits.test)))
        return Ground(train, valid, test, "scikit-learn digits in drawn scenes", False, patch=4,
                      dino=_dino(SIDE, border=0.6, least=0.3, flip=0.0, lr=5e-3), threshold=0.6, untrained=0.8, lost=(0.4, 2),
                      share=0.6, centre=0.5)


@lru_cache(maxsize=1)
def _table() -> tuple[Part, Part]:
    """Both splits of the photographs, cut to the table. Raises `Refused`."""
    found = arrays.read(home("mosd_rgbd") / "mosd_160x120.npz")
    top, bottom, left, right = TABLE

    def part(name: str) -> Part:
        x = torch.from_numpy(found[f"{name}_rgb"][:, top:bottom, left:right]).movedim(-1, 1).float() / 255
        objects = torch.from_numpy(found[f"{name}_object"][:, top:bottom, left:right].astype(np.int64))    # 0: no depth, 1: table
        return Part(x, objects >= 2, [_boxes(one) for one in objects])
    return part("learn"), part("test")


def _boxes(objects: Tensor) -> Tensor:
    """Of every object [height, width], numbered from 2, and of every pile of them."""
    from scipy.ndimage import label

    piles = torch.from_numpy(label(objects >= 2)[0])
    things = [objects == i for i in objects.unique() if i >= 2] + [piles == i for i in piles.unique() if i > 0]
    return torch.stack([bounds(thing) for thing in things if thing.sum() >= LEAST])


def drawn(digits: Tensor, seed: int) -> Part:
    """Scenes around digits [n, 1, 8, 8], in each the ink of one.

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
    masks = ink[:, 0] > 0.5
    x = (x + NOISE * torch.randn(x.shape, generator=draw)).clamp(0, 1)
    return Part(x, masks, [bounds(one)[None] for one in masks])


def _colour(hue: Tensor) -> Tensor:
    """Of mean 0.5 over the channels, [n, 3, 1, 1]."""
    red, blue = torch.tensor([1.0, -1, 0]) / math.sqrt(2), torch.tensor([1.0, 1, -2]) / math.sqrt(6)
    return (0.5 + 0.25 * (hue.cos()[:, None] * red + hue.sin()[:, None] * blue))[..., None, None]


def _unlabelled(x: Tensor) -> TensorDataset:
    return TensorDataset(x, torch.full((len(x),), UNLABELLED))


@lru_cache(maxsize=4)
def _taught(seed: int) -> tuple[Module, Module]:
    """The encoder as it began, and self-distilled on the training images."""
    ground = _ground(seed)
    x = ground.train.x
    torch.manual_seed(seed)
    net = ViT(image=ground.dino.large_size, patch=ground.patch, channels=3, dim=48, depth=DEPTH, heads=HEADS,
              mean=x.mean().item(), std=x.std().item())
    return copy.deepcopy(net).eval(), ground.dino(Run(seed=seed), student=net, data=_unlabelled(x))


def _dino(side: int, **fields) -> DINO:
    return DINO(prototypes=256, hidden=128, bottleneck=32, small=2, large_size=side, small_size=side // 2, colour=0.0,
                sharp_end=0.04, momentum=0.96, batch=32, steps=150, **fields)


@torch.no_grad()
def _lost(teacher: Module, ground: Ground, threshold: float, near: int) -> list[Tensor]:
    """Masks by LOST (sec. 3): the seed is the patch that resembles fewest others; of the `near` patches first in that order
    those that resemble it join it; the object is what resembles them in sum, and hangs together with the seed."""
    found = []
    for key in keys(teacher, ground.test.x, ground.patch):
        flat = F.normalize(key.flatten(0, 1), dim=-1)
        alike = flat @ flat.T - threshold                                        # [patches, patches]
        order = (alike >= 0).sum(1).argsort(stable=True)
        seed = int(order[0])
        joined = order[:near][alike[seed, order[:near]] >= 0]
        mask = alike[joined].sum(0) >= 0
        mask[seed] = True
        found.append(component(mask.view(key.shape[:2]), seed))
    return found


@torch.no_grad()
def _attention(teacher: Module, ground: Ground) -> list[Tensor]:
    """Masks by the last block's attention of the class token, mean over heads: the patches that hold a share of it, as far as
    they hang together with the highest (Caron et al. 2021, fig. 4)."""
    x = ground.test.x
    qkv = Tap(teacher, f"blocks.{DEPTH - 1}.qkv")(x)[1][0].unflatten(-1, (3, HEADS, -1))
    q, k, _ = qkv.permute(2, 0, 3, 1, 4)                                             # [batch, heads, tokens, dim]
    weight = (q[:, :, :1] @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)[:, :, 0, 1:].mean(1)
    found = []
    for one in weight / weight.sum(1, keepdim=True):
        value, order = one.sort(descending=True)
        mask = torch.zeros(len(one), dtype=torch.bool).index_fill(0, order[value.cumsum(0) - value < ground.share], True)
        found.append(component(mask.view(-1, x.shape[-1] // ground.patch), int(order[0])))
    return found


def _centre(ground: Ground, share: float) -> Tensor:
    height, width = ground.test.x.shape[-2:]
    rest = (1 - share) / 2
    return torch.tensor([rest * height, rest * width, share * height, share * width]).expand(len(ground.test.x), 4)


def _shown(part: Part, maps: dict[str, list[Tensor]], count: int = 8) -> dict[str, Tensor]:
    """Of the first images, [n, 1 or 3, height, width] in [0, 1]."""
    drawn = {who: torch.stack(those[:count])[:, None].float().clamp(0, 1) for who, those in maps.items()}
    return {"the images": part.x[:count], **drawn, "the objects": part.masks[:count, None].float()}
