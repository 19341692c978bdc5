"""Photographs of one thing from all sides, and a radiance field that has learnt from them: Lego where it lies, else drawn solids."""

import copy
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from stillroom.arenas.cast import Cast
from stillroom.errors import Refused
from stillroom.measure.images import psnr
from stillroom.models import fields
from stillroom.parts import cameras, optim
from stillroom.parts.rendering import composite, occupancy, render, sample, trunc_exp
from stillroom.parts.schedules import cosine
from stillroom.recipe import Recipe
from stillroom.run import Run
from stillroom.zoo import arrays, shared

SIDE = 50                                       # pixels
SAMPLES = 48                                    # along a ray
GRID = 32                                       # cells of the occupancy grid along an edge
SHOWN = 5                                       # views that are held out
KINDS = {"mlp": partial(fields.mlp, octaves=6, depth=4, width=64),
         "table": partial(fields.table, levels=6, coarsest=8, finest=64, entries=2**14, hidden=32),
         "planes": partial(fields.planes, cells=48, rank=8, rank_colour=16),
         "volume": partial(fields.volume, cells=32, bands=2)}


class Photographs(NamedTuple):
    images: Tensor       # [n, height, width, 3] in [0, 1], on white
    poses: Tensor        # [n, 4, 4], camera to world
    focal: float         # in pixels
    bound: float         # half the edge of the box that holds the thing
    words: str           # what they show


@dataclass(frozen=True, kw_only=True)
class Fitting(Recipe):
    """A field learns from photographs, the usual way; cells that it finds empty are left out from then on."""

    lr: float = 0.01          # of AdamW, cosine
    rays: int = 4096          # per step
    samples: int = 1024       # along a ray
    prune: int = 0            # steps between two looks at which cells are empty; 0: never
    steps: int = 30_000       # updates

    def distill(self, run: Run, field: Module, images: Tensor, poses: Tensor, focal: float) -> Module:
        opt = optim.adamw(field, lr=cosine(self.lr, 7e-5), betas=(0.9, 0.99), eps=1e-15, shares=field.paces())
        run.keep(field=field, opt=opt)
        n, height, width, _ = images.shape
        for step in run.loop(steps=self.steps):
            which, pixels = torch.randint(n, (self.rays,)), torch.randint(height * width, (self.rays,))
            points = sample(cameras.rays(poses[which], pixels, focal, height, width), field.bound, field.occupied, self.samples, True)
            said = field(points.x, points.direction)
            seen = composite(points, trunc_exp(said.logit), said.colour)
            run.update(opt, rgb=F.mse_loss(seen.colour, images.flatten(1, 2)[which, pixels]))
            if self.prune and step and step % self.prune == 0:
                field.occupied.copy_(occupancy(field))
        return field


def radiance(seed: int = 0) -> Cast:
    """Student, teacher, cameras, and judges."""
    seen, hidden, teacher = _ground(seed)
    student = _new("mlp", seen.bound, 100 + seed)
    return Cast({"student": student, "teacher": copy.deepcopy(teacher), "poses": seen.poses, "focal": seen.focal, "height": SIDE,
                 "width": SIDE}, data=seen.words, real=seen.words.startswith("nerf"), seen=seen, hidden=hidden,
                psnr=lambda field: psnr(shot(field, hidden), hidden.images),
                alone=partial(_alone, seed))


def shot(field: Module, at: Photographs) -> Tensor:
    """The field as it looks from where the photographs were taken, [n, height, width, 3]."""
    n, height, width, _ = at.images.shape
    rays = cameras.rays(at.poses[:, None], torch.arange(height * width), at.focal, height, width)
    return render(field, rays.flatten(0, 1), SAMPLES).view(n, height, width, 3)


def _new(kind: str, bound: float, seed: int, **options: Any) -> Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return KINDS[kind](bound=bound, grid=GRID, **options)


@lru_cache(maxsize=4)
def _ground(seed: int) -> tuple[Photographs, Photographs, Module]:
    everything = _lego()
    order = torch.randperm(len(everything.images), generator=torch.Generator().manual_seed(seed))
    hidden, seen = (everything._replace(images=everything.images[i], poses=everything.poses[i])
                    for i in (order[:SHOWN], order[SHOWN:]))
    teacher = Fitting(lr=0.03, rays=256, samples=SAMPLES, prune=20, steps=300)(
        Run(seed=seed), field=_new("table", seen.bound, seed), images=seen.images, poses=seen.poses, focal=seen.focal)
    return seen, hidden, teacher


@lru_cache(maxsize=4)
def _alone(seed: int, steps: int = 150, rays: int = 128, lr: float = 0.01) -> Module:
    seen, _, teacher = _ground(seed)
    net = _new("mlp", seen.bound, 100 + seed)
    net.occupied.copy_(teacher.occupied)
    return Fitting(rays=rays, samples=SAMPLES, steps=steps, lr=lr)(Run(seed=seed), field=net, images=seen.images, poses=seen.poses, focal=seen.focal)


@lru_cache(maxsize=1)
def _lego() -> Photographs:
    found = arrays.read(shared.home("nerf_lego") / "nerf_lego_100x100.npz")
    rgba = torch.from_numpy(found["images_premultiplied_rgba"].astype(np.float32) / 255)
    white = (rgba[..., :3] + 1 - rgba[..., 3:]).permute(0, 3, 1, 2)
    images = F.avg_pool2d(white, white.shape[2] // SIDE).permute(0, 2, 3, 1).contiguous()
    return Photographs(images, torch.from_numpy(found["poses"]).float(), float(found["focal"]) * SIDE / white.shape[2], 1.3,
                       "nerf_lego")
