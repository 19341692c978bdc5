"""Coloured shapes on grey ground, some kinds without boxes; a teacher of two towers, crops and names, that has seen them all."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module

from stillroom.arenas.cast import Cast
from stillroom.measure.cost import resting
from stillroom.measure.detection import Boxes, mean_ap
from stillroom.models.detector import Detector, OneMap, scores
from stillroom.parts import optim
from stillroom.parts.boxes import crops, overlaps
from stillroom.parts.schedules import cosine
from stillroom.run import Run

COLOURS = {"red": (0.9, 0.2, 0.2), "green": (0.2, 0.8, 0.2), "blue": (0.2, 0.3, 0.9), "yellow": (0.9, 0.9, 0.2)}
SHAPES = ("disc", "square", "cross", "triangle")
NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
NOVEL = (3, 6, 9, 12)                # of the names: each colour and each shape once
SIDE, CROP, DIM = 64, 16, 32         # pixels of an image and of a crop; of an embedding
SPLIT = (160, 120)                   # train, test


def tinted(seed: int = 0) -> Cast:
    """What `vocabulary` says; the teacher's towers learnt from other drawn images."""
    return vocabulary(_ground(seed), data="drawn shapes of four colours", real=False)


def vocabulary(ground: SimpleNamespace, **words) -> Cast:
    """Detector, image tower, embeddings of the base names, images with boxes of base classes, and judges.

    fresh(heads)     a new detector
    ap50(net, way)   AP50 on base and on novel classes of the test images, in percent
    recall(net)      share of the novel objects on them that a proposal overlaps with an IoU of 0.5 or more, in percent
    other(way)       what the trial makes in another way: "text", "image", "both", "ensemble"
    crops()          share of the teacher's crops whose name it finds, in percent
    """
    actors = {"student": ground.student(2), "tower": copy.deepcopy(ground.tower), "texts": ground.texts[ground.base].clone(),
              "data": ground.train, **ground.more}
    return Cast(actors, texts=ground.texts, base=ground.base, test=ground.test, fresh=ground.student,
                ap50=partial(_ap50, ground), recall=partial(_recall, ground), other=lambda way: _other(ground.seed, way),
                crops=lambda: ground.right, **words)


def drawn(count: int, seed: int) -> list[tuple[Tensor, Boxes]]:
    """Images [3, side, side] of two to four shapes that barely overlap, with noise, and the boxes and masks of all of them, by
    `NAMES`; what lies under another shape is not of the mask."""
    draw = torch.Generator().manual_seed(seed)
    down, right = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    found = []
    for _ in range(count):
        image = torch.full((3, SIDE, SIDE), 0.5)
        boxes: list[list[float]] = []
        labels: list[int] = []
        masks: list[Tensor] = []
        for _ in range(int(torch.randint(2, 5, (), generator=draw))):
            half = 7 + 4 * torch.rand((), generator=draw).item()
            y, x = (half + (SIDE - 2 * half) * torch.rand(2, generator=draw)).tolist()
            if any(abs(x - (b[0] + b[2]) / 2) + abs(y - (b[1] + b[3]) / 2) < 22 for b in boxes):
                continue
            label = int(torch.randint(len(NAMES), (), generator=draw))
            dy, dx = (down - y).abs(), (right - x).abs()
            inside = (dy.square() + dx.square() < half**2, torch.maximum(dy, dx) < half,
                      (torch.minimum(dy, dx) < half / 3) & (torch.maximum(dy, dx) < half),
                      (torch.maximum(dy, dx) < half) & (2 * dx < down - y + half))[label % 4]
            image[:, inside] = torch.tensor(list(COLOURS.values())[label // 4])[:, None]
            boxes.append([x - half, y - half, x + half, y + half])
            labels.append(label)
            masks = [*(mask & ~inside for mask in masks), inside]
        image = image * (0.8 + 0.4 * torch.rand((), generator=draw)) + 0.1 * torch.randn(image.shape, generator=draw)
        found.append((image.clamp(0, 1), Boxes(torch.tensor(boxes), torch.tensor(labels), masks=torch.stack(masks))))
    return found


def student(seed: int, heads: int, mask: int = 0) -> Detector:
    torch.manual_seed(1000 + seed)
    return Detector(OneMap((8, 16, 32), 32), 32, DIM, heads=heads, anchors=((14, 18, 22),), side=4, hidden=64, keep=(100, 24),
                    sample=32, mask=mask)


@lru_cache(maxsize=4)
def _ground(seed: int) -> SimpleNamespace:
    base = torch.ones(len(NAMES), dtype=torch.bool).index_fill(0, torch.tensor(NOVEL), False)
    train, test = (drawn(n, 3 * seed + i) for i, n in enumerate(SPLIT))
    tower, texts, right = _teacher(seed)
    return SimpleNamespace(train=[(x, boxed(t, base)) for x, t in train], more={}, test=test, base=base, tower=tower,
                           texts=texts, right=right, seed=seed, student=partial(student, seed))


def boxed(truth: Boxes, base: Tensor) -> Boxes:
    """Those of the base classes, numbered among themselves."""
    truth = truth.only(base[truth.labels])
    return truth._replace(labels=(base.cumsum(0) - 1)[truth.labels])


def _teacher(seed: int) -> tuple[Module, Tensor, float]:
    """Both towers, and their accuracy on other crops in percent. Their images are not those of the detector."""
    tower, texts = towers(seed, len(NAMES), lambda: _crops(drawn(240, 3 * seed + 2)))
    return tower, texts, named(tower, texts, *_crops(drawn(40, 10_000 + seed)))


def towers(seed: int, names: int, learn: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Module, Tensor]:
    """Image tower, and the embeddings of the names, [names, dim], learnt together by the contrast of every crop with all names;
    `learn` makes the crops and their classes."""
    torch.manual_seed(seed)
    tower = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(),
                          nn.Linear(32 * (CROP // 4) ** 2, 64), nn.ReLU(), nn.Linear(64, DIM))
    table = nn.Embedding(names, DIM)                # the text tower: every name is one word
    x, y = learn()
    run, opt = Run(seed=seed), optim.adamw(tower, table, lr=cosine(3e-3), decay=0.01)
    run.keep(tower=tower, names=table, opt=opt)
    for _ in run.loop(steps=250):
        some = torch.randint(len(x), (64,))
        logits = F.normalize(tower(x[some] + 0.05 * torch.randn(64, 3, 1, 1)), dim=1) @ F.normalize(table.weight, dim=1).T / 0.1
        run.update(opt, match=F.cross_entropy(logits, y[some]))
    return tower.eval(), F.normalize(table.weight.detach(), dim=1)


@torch.no_grad()
def named(tower: Module, texts: Tensor, x: Tensor, y: Tensor) -> float:
    """Share of the crops whose name is found, in percent."""
    return 100 * ((F.normalize(tower(x), dim=1) @ texts.T).argmax(1) == y).float().mean().item()


def _crops(images: list[tuple[Tensor, Boxes]]) -> tuple[Tensor, Tensor]:
    """Crops around all boxes, each four times and never quite the same, and their classes."""
    moved = [t.boxes.repeat(4, 1) + 2 * torch.randn(4 * len(t.boxes), 4) for _, t in images]
    x = torch.cat([crops(image, boxes, CROP) for (image, _), boxes in zip(images, moved, strict=True)])
    return x, torch.cat([t.labels.repeat(4) for _, t in images])


def _ap50(ground: SimpleNamespace, net: Detector, way: str) -> tuple[float, float]:
    from stillroom.recipes.dense.vild import trial

    net.eval()
    heat = trial(ground.seed)[0].temperature
    x = torch.stack([image for image, _ in ground.test]).to(net.background.device)
    found = net.detect(x, lambda regions: scores(net, regions, ground.texts, ground.base, way, heat), least=0.01)
    truth = [t for _, t in ground.test]
    base, novel = (mean_ap(found, truth, some.nonzero().flatten().tolist(), (0.5,)) for some in (ground.base, ~ground.base))
    return base, novel


def _recall(ground: SimpleNamespace, net: Detector) -> float:
    with resting(net):
        proposals = net.propose(torch.stack([image for image, _ in ground.test]).to(net.background.device))[1]
    near = [overlaps(t.boxes[~ground.base[t.labels]], p.cpu()).amax(1) for (_, t), p in zip(ground.test, proposals, strict=True)]
    return 100 * (torch.cat(near) >= 0.5).float().mean().item()


@lru_cache(maxsize=8)
def _other(seed: int, way: str) -> Detector:
    from stillroom.recipes.dense.vild import WAYS, trial  # which stands on this ground itself

    method, cast = trial(seed)
    return replace(method, way=way)(Run(seed=seed), **{**cast.actors, "student": cast.fresh(WAYS[way])})
