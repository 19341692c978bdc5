"""Blood cells under a microscope (BCCD), white ones without boxes; where the shared data are not, the drawn shapes of `tinted`.

There is a white cell on nearly every image, so an image with boxes but none on it would teach the proposals that it is ground.
The split is that of zero-shot detection (Bansal et al. 2018): what shows a white cell has no boxes at all. Boxed are quarters of
the training images that show none; the training images whole, without boxes, are there for what is proposed on them.
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

from stillroom.arenas.cast import Cast
from stillroom.arenas.tinted import CROP, DIM, boxed, named, tinted, towers, vocabulary
from stillroom.errors import Refused
from stillroom.measure.detection import Boxes
from stillroom.models.detector import Detector, OneMap
from stillroom.parts.boxes import crops, through
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
    return Detector(OneMap((8, 16, 32), 32), 32, DIM, heads=heads, anchors=((8, 16, 30),), side=4, hidden=64, keep=(400, 120),
                    sample=64)


@lru_cache(maxsize=4)
def _ground(seed: int, judged: str = "test") -> SimpleNamespace:
    (pictured, names), (judges, _) = pictures("train"), pictures(judged)
    novel = names.index(NOVEL)
    own, train = pictured[:OWN], pictured[OWN:]
    base = torch.arange(len(names)) != novel
    tower, texts = towers(seed, len(names), lambda: cells_of(own, 0.08))
    whole, test = ([part(x, t, (0.0, 0.0, *x.shape[1:])) for x, t in images] for images in (train, judges))
    return SimpleNamespace(train=quarters(train, novel, base), whole=whole, more={"images": whole}, test=test, base=base,
                           tower=tower, texts=texts, right=named(tower, texts, *cells_of(judges, 0.0)), seed=seed,
                           student=partial(student, seed))


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
    count = sum(torch.bincount(t.labels, minlength=3) for _, t in images)
    x, y = [], []
    for image, truth in images:
        truth = truth.only(torch.arange(len(truth.labels)).repeat_interleave((count.max() / count).round().long()[truth.labels]))
        size = (truth.boxes[:, 2:] - truth.boxes[:, :2]).repeat(1, 2)
        x.append(crops(image, truth.boxes + moved * size * torch.randn_like(size), CROP))
        y.append(truth.labels)
    return torch.cat(x), torch.cat(y)
