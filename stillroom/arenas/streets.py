"""Street scenes, every pixel with a class: CamVid where the shared data are, else scenes of shapes that are drawn."""

import copy
import io
import zipfile
from dataclasses import replace
from functools import lru_cache, partial
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import Module
from torch.utils.data import TensorDataset

from stillroom.arenas.cast import Cast, variant
from stillroom.errors import Refused
from stillroom.measure.segmentation import mean_iou, pixel_accuracy, segmented
from stillroom.models.segmenter import Segmenter, segmenter
from stillroom.parts import losses, optim
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.schedules import linear
from stillroom.run import Run
from stillroom.zoo.shared import home

SIZE = (36, 48)                       # height and width
SPLIT = (180, 50, 100)                # train, valid (for tuning), test: every so many of the frames, in their order
LABELLED = 2                          # of the training images whose masks the student may see
REPEATED = 30                         # times that these stand in its data, so that about every batch holds one
VOID = 11                             # CamVid's class for what has none


def streets(seed: int = 0) -> Cast:
    """Student and teacher (twice as wide, taught by every mask), images of which some have masks, and judges.

    miou(net)         mean intersection over union on the test images, in percent
    pixels(net)       share of their pixels whose class is found, in percent
    alone()           the student taught by the labelled images alone, with the trial's budget
    other(**fields)   what the trial makes with these fields changed
    """
    ground = _ground(seed)
    actors = {"student": _student(seed, ground.classes), "teacher": copy.deepcopy(_teacher(seed)), "data": ground.train}
    return Cast(actors, data=ground.words, real=ground.real, valid=ground.valid, test=ground.test, labelled=ground.labelled,
                teacher=copy.deepcopy(_teacher(seed)), miou=lambda net: mean_iou(segmented(net, ground.test)),
                pixels=lambda net: pixel_accuracy(segmented(net, ground.test)), alone=lambda: _alone(seed),
                other=partial(variant, "acam_kd", seed))


@lru_cache(maxsize=4)
def _ground(seed: int) -> SimpleNamespace:
    try:
        parts = [_camvid(name, n) for name, n in zip(("train", "val", "test"), SPLIT, strict=True)]
        words, real, classes = f"CamVid at {SIZE[1]} × {SIZE[0]}, {SPLIT[0]} images, {LABELLED} of them labelled", True, VOID
    except Refused:
        parts = [drawn(n, 1000 * seed + i) for i, n in enumerate(SPLIT)]
        words, real, classes = f"drawn shapes, {SPLIT[0]} images, {LABELLED} of them labelled", False, 4
    (x, y), valid, test = parts
    some = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:LABELLED]
    given = torch.full_like(y, UNLABELLED).index_copy(0, some, y[some])
    every = torch.cat([torch.arange(len(x)), some.repeat(REPEATED - 1)])
    return SimpleNamespace(train=TensorDataset(x[every], given[every]), labelled=TensorDataset(x[some], y[some]),
                           taught=TensorDataset(x, y), valid=TensorDataset(*valid), test=TensorDataset(*test),
                           words=words, real=real, classes=classes)


@lru_cache(maxsize=3)
def _camvid(split: str, count: int) -> tuple[Tensor, Tensor]:
    """Frames [n, 3, height, width] and classes [n, height, width] of a split of CamVid, evenly spread. Raises `Refused`."""
    archive = zipfile.ZipFile(home("camvid") / "camvid_240x180.zip")
    names = sorted(n for n in archive.namelist() if n.startswith(f"CamVid/{split}/") and n.endswith(".jpg"))
    wanted = [names[int(i)] for i in np.linspace(0, len(names) - 1, min(count, len(names)))]

    def read(name: str, way: Image.Resampling) -> np.ndarray:
        with Image.open(io.BytesIO(archive.read(name))) as picture:
            return np.asarray(picture.resize(SIZE[::-1], way))

    masks_of = [n.replace(f"{split}/", f"{split}annot/").replace(".jpg", ".png") for n in wanted]
    x = np.stack([read(n, Image.Resampling.BOX) for n in wanted])
    y = np.stack([read(n, Image.Resampling.NEAREST) for n in masks_of])
    masks = torch.from_numpy(y.astype(np.int64))
    return torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255, masks.masked_fill(masks == VOID, UNLABELLED)


def drawn(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scenes [n, 3, height, width] of discs, bars and rings of any colour, the nearer over the farther, with noise, and their
    classes [n, height, width], 0 for the ground; a rim around every shape is void."""
    draw = torch.Generator().manual_seed(seed)
    down, right = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    x = torch.rand(count, 3, 1, 1, generator=draw).expand(-1, -1, *SIZE).clone()
    y = torch.zeros(count, *SIZE, dtype=torch.long)
    for image, mask in zip(x, y, strict=True):
        for kind in torch.randint(1, 4, (5,), generator=draw).tolist():
            at = torch.rand(2, generator=draw) * torch.tensor(SIZE)
            size = 5 + 7 * torch.rand((), generator=draw)
            far = ((down - at[0]).square() + (right - at[1]).square()).sqrt()
            if kind == 2:
                far = torch.maximum((down - at[0]).abs() * 2.5, (right - at[1]).abs())
            if kind == 3:
                far = (far - 0.7 * size).abs() * 3
            mask[far < size + (1.01, 2.51, 3.01)[kind - 1]] = UNLABELLED       # a pixel wide
            mask[far < size] = kind
            image[:, far < size] = torch.rand(3, 1, generator=draw)
    return (x + 0.1 * torch.randn(x.shape, generator=draw)).clamp(0, 1), y


def _student(seed: int, classes: int) -> Segmenter:
    torch.manual_seed(1000 + seed)
    return segmenter(classes, widths=(8, 16, 32), width=16)


@lru_cache(maxsize=4)
def _teacher(seed: int) -> Module:
    """Taught by the masks of all training images."""
    ground = _ground(seed)
    torch.manual_seed(seed)
    net = segmenter(ground.classes, widths=(16, 32, 64), width=32)
    run, opt = Run(seed=seed), optim.adamw(net, lr=linear(0.01, warmup=0.1), decay=0.01)
    run.keep(net=net, opt=opt)
    for x, y in run.loop(ground.taught, batch=8, steps=250):
        run.update(opt, labels=losses.labels(net(x), y))
    return net.eval()


@lru_cache(maxsize=4)
def _alone(seed: int) -> Module:
    """ACAM-KD without its teacher, on the labelled images."""
    from stillroom.recipes.dense.acam_kd import trial  # which stands on this ground itself

    method, cast = trial(seed)
    actors = {**cast.actors, "data": cast.labelled}
    return replace(method, alpha=0.0, diversity=0.0, sees="nothing")(Run(seed=seed), **actors)
