"""Blood cells under a microscope (BCCD), white ones without boxes; where the shared data are not, the drawn shapes of `tinted`.

A white cell is on nearly every image; were it there without a box, the proposals would learn that it is ground. So the split
is that of zero-shot detection (Bansal et al. 2018): what shows one has no boxes at all. Boxed are quarters of the training
images that show none; the training images whole, without boxes, are there for what is proposed on them.
"""

import io
import json
import zipfile
from functools import lru_cache, partial
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import Module

from stillroom.arenas.cast import Cast
from stillroom.arenas.tinted import CROP, DIM, boxed, named, tinted, towers, vocabulary
from stillroom.errors import Refused
from stillroom.measure.detection import Boxes
from stillroom.models.detector import Detector, OneMap
from stillroom.parts.boxes import crops, overlaps, through
from stillroom.parts.views import resample
from stillroom.zoo.shared import home

NOVEL = "WBC"
SIZE = (72, 96)                      # of an image, and of a quarter of one
OWN = 45                             # of the training images: those from which the towers learn, not the detector
LEAST = 0.4                          # share of a cell that must be on a quarter for its box to be

Pictures = list[tuple[Tensor, Boxes]]


def cells(seed: int = 0) -> Cast:
    """What `tinted.vocabulary` says, and `images` to look for proposals on."""
    try:
        ground = _ground(seed)
    except Refused:
        return tinted(seed)
    return vocabulary(ground, real=True, data=f"BCCD at {SIZE[1]} × {SIZE[0]}, white cells novel: {len(ground.train)} quarters "
                      f"without one boxed, {len(ground.more['images'])} images unboxed, {len(ground.test)} to test")


@lru_cache(maxsize=3)
def pictures(split: str) -> tuple[Pictures, list[str]]:
    """Images [3, height, width] of a split, with the boxes of all cells, and the names of the kinds. Raises `Refused`."""
    archive = zipfile.ZipFile(home("bccd") / "bccd_320x240.zip")
    told = json.loads(archive.read("annotations.json"))
    found = []
    for row in (row for row in told["images"] if row["split"] == split):
        with Image.open(io.BytesIO(archive.read(row["file"]))) as picture:
            pixels = np.array(picture.convert("RGB"))
        boxes = torch.tensor([box[1:] for box in row["boxes"]], dtype=torch.float).reshape(-1, 4)
        labels = torch.tensor([box[0] for box in row["boxes"]], dtype=torch.long)
        found.append((torch.from_numpy(pixels).permute(2, 0, 1).float() / 255, Boxes(boxes, labels)))
    return found, told["class_names"]


def part(image: Tensor, truth: Boxes, window: tuple[float, ...]) -> tuple[Tensor, Boxes]:
    """What a window (top, left, height, width) shows, at `SIZE`; cells of which less than `LEAST` is there have no box."""
    at = torch.tensor(window)
    boxes = through(truth.boxes, at, SIZE)
    seen = area(boxes) >= LEAST * area(truth.boxes) * (SIZE[0] / window[2]) * (SIZE[1] / window[3])
    return resample(image, at, SIZE), truth._replace(boxes=boxes).only(seen)


def area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def student(seed: int, heads: int) -> Detector:
    torch.manual_seed(1000 + seed)
    net = Detector(OneMap((8, 16, 32), 32), 32, DIM, heads=heads, anchors=((16, 30),), side=4, hidden=64, keep=(400, 120),
                   sample=64)
    torch.manual_seed(2000 + seed)                                         # the same proposals, however many heads
    net.rpn = Unshared(OneMap((8, 16, 32), 32), net.rpn)
    return net


class Unshared(Module):
    """A proposal network with maps of its own (Ren et al. 2015, table 2): so small a backbone, shared and learnt from nothing,
    learns from the crops to tell white cells from red ones, and then often proposes the white ones no more."""

    def __init__(self, backbone: Module, rpn: Module):
        super().__init__()
        self.backbone, self.rpn = backbone, rpn

    def forward(self, images, maps: dict[str, Tensor], known=None):
        return self.rpn(images, self.backbone(images.tensors), known)


@lru_cache(maxsize=4)
def _ground(seed: int, judged: str = "test") -> SimpleNamespace:
    (pictured, names), (judges, _) = pictures("train"), pictures(judged)
    novel = names.index(NOVEL)
    own, train = pictured[:OWN], pictured[OWN:]
    base = torch.arange(len(names)) != novel
    tower, texts = towers(seed, len(names) + 1, lambda: together(cells_of(own, 0.08), pieces_of(own, len(names))))
    texts = texts[: len(names)]
    whole, test = ([part(x, t, (0.0, 0.0, *x.shape[1:])) for x, t in images] for images in (train, judges))
    unboxed = [(x, t.only(t.labels < 0)) for x, t in whole]
    right = named(tower, texts, *cells_of(judges, 0.0))
    return SimpleNamespace(train=quarters(train, novel, base), more={"images": unboxed}, test=test, base=base, tower=tower,
                           texts=texts, right=right, seed=seed, student=partial(student, seed))


def quarters(images: Pictures, novel: int, base: Tensor) -> Pictures:
    """Quarters of the images on which no pixel is of a novel object, and something is of a base class."""
    found = []
    for x, truth in images:
        height, width = (n / 2 for n in x.shape[1:])
        for window in ((top * height, left * width, height, width) for top in (0, 1) for left in (0, 1)):
            there = area(through(truth.boxes[truth.labels == novel], torch.tensor(window), SIZE)) > 0
            image, seen = part(x, truth, window)
            if len(seen.boxes) and not there.any():
                found.append((image, boxed(seen, base)))
    return found


def cells_of(images: Pictures, moved: float) -> tuple[Tensor, Tensor]:
    """Crops of all cells, each kind equally often, around boxes moved by this share of their size, and their kinds."""
    count = torch.cat([t.labels for _, t in images]).bincount()
    x, y = [], []
    for image, truth in images:
        truth = truth.only(torch.arange(len(truth.labels)).repeat_interleave((count.max() / count).round().long()[truth.labels]))
        size = (truth.boxes[:, 2:] - truth.boxes[:, :2]).repeat(1, 2)
        x.append(crops(image, truth.boxes + moved * size * torch.randn_like(size), CROP))
        y.append(truth.labels)
    return torch.cat(x), torch.cat(y)


def pieces_of(images: Pictures, label: int, each: int = 24) -> tuple[Tensor, Tensor]:
    """Crops of what is no cell, or a piece of one, or much more than one, all of one kind more."""
    x = []
    for image, truth in images:
        limit = torch.tensor([image.shape[2], image.shape[1]]).repeat(2)
        some = truth.only(torch.multinomial(1 / torch.bincount(truth.labels)[truth.labels].float(), each, replacement=True))
        size = some.boxes[:, 2:] - some.boxes[:, :2]
        centre = some.boxes[:, :2] + size * torch.rand_like(size)
        half = size * (0.15 + 0.5 * torch.rand(each, 1) + 0.4 * (torch.rand(each, 1) < 0.3))
        boxes = torch.cat([centre - half, centre + half], 1).clamp(min=0).minimum(limit)
        boxes = boxes[(overlaps(boxes, truth.boxes).amax(1) < 0.35) & ((boxes[:, 2:] - boxes[:, :2]).amin(1) > 4)]
        x.append(crops(image, boxes, CROP))
    return torch.cat(x), torch.full((sum(map(len, x)),), label)


def together(*parts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    x, y = zip(*parts, strict=True)
    return torch.cat(x), torch.cat(y)
