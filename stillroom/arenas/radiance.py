"""Photographs of one thing from all sides, and a field that has learnt from them: Lego where it lies, else drawn solids."""

import copy
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom import zoo
from stillroom.arenas import solids
from stillroom.arenas.cast import Cast, variant
from stillroom.errors import Refused
from stillroom.measure.images import psnr
from stillroom.models.fields import Field
from stillroom.parts import cameras, optim
from stillroom.parts.rendering import composite, sample, trunc_exp
from stillroom.parts.schedules import cosine
from stillroom.recipe import Recipe
from stillroom.run import Run
from stillroom.zoo import arrays, shared

SIDE = 50                   # pixels
SAMPLES = 48                # along a ray
GRID = 32                   # cells of the occupancy grid along an edge
HELD_OUT = 5                # views
KINDS = {"mlp": "field:mlp?octaves=6&depth=4&width=64",
         "table": "field:table?levels=6&coarsest=8&finest=64&entries=16384&hidden=32",
         "planes": "field:planes?cells=48&rank=8&rank_colour=16", "volume": "field:volume?cells=32&bands=2"}
EVEN = {"hard_views": 0.0, "hard_rays": 0.0, "points": 1.0, "opaque": 0.0}        # nothing comes more often: PVD
RENDERED = {**EVEN, "feature": 0.0, "density": 0.0, "colour": 0.0, "features": 0.0, "blocks": 0.0}


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

    def distill(self, run: Run, field: Field, images: Tensor, poses: Tensor, focal: float) -> Field:
        opt = optim.adamw(field, lr=cosine(self.lr, 7e-5), betas=(0.9, 0.99), eps=1e-15, shares=field.paces())
        run.keep(field=field, opt=opt)
        n, height, width, _ = images.shape
        for step in run.loop(steps=self.steps):
            which, pixels = torch.randint(n, (self.rays,)), torch.randint(height * width, (self.rays,))
            rays = cameras.rays(poses[which], pixels, focal, height, width)
            points = sample(rays, field.bound, field.occupied, self.samples, jitter=True)
            said = field(points.x, points.direction)
            seen = composite(points, trunc_exp(said.logit), said.colour)
            run.update(opt, rgb=F.mse_loss(seen.colour, images.flatten(1, 2)[which, pixels]))
            if self.prune and step and step % self.prune == 0:
                field.prune()
        return field


def radiance(seed: int = 0) -> Cast:
    """Student (a deep network), teacher (a hash table that has learnt from 95 photographs, or 35 drawn ones), cameras, judges.

    psnr(field)                         on the views that are held out, dB
    alone(method, times=1)              the student taught by photographs at the recipe's rate, with its rays and so many times
                                        its steps, in the cells that the teacher found occupied
    others(student, method)             the teacher; students of PVD without active learning, of what is rendered alone, of
                                        photographs with twice the steps; a volume that this student has taught; by name
    views(student, method)              the held-out views, and as teacher, student and the student alone show them, by name
    fresh(kind)                         a field that knows nothing: mlp, table, planes, volume
    """
    seen, hidden, teacher = _ground(seed, _home())
    actors = {"student": fresh("mlp", seen.bound, seed), "teacher": copy.deepcopy(teacher), "poses": seen.poses,
              "focal": seen.focal, "height": SIDE, "width": SIDE}
    return Cast(
        actors, data=seen.words, real=_home() is not None, seed=seed,
        psnr=lambda field: psnr(shot(field, hidden), hidden.images),
        alone=partial(_alone, seed, _home()), fresh=lambda kind: fresh(kind, seen.bound, seed),
        others=lambda student, method: _others(seed, actors, student, method),
        views=lambda student, method: _views(hidden, teacher, student, _alone(seed, _home(), method)))


def shot(field: Field, at: Photographs) -> Tensor:
    """The field as it looks from where the photographs were taken, [n, height, width, 3]."""
    n, height, width, _ = at.images.shape
    rays = cameras.rays(at.poses[:, None], torch.arange(height * width), at.focal, height, width).flatten(0, 1)
    return field.render(rays.to(field.occupied.device), SAMPLES).cpu().view(n, height, width, 3)


def _others(seed: int, actors: dict[str, Any], student: Field, method: Any) -> dict[str, Field]:
    """See `radiance`."""
    volume = fresh("volume", student.bound, seed)
    back = replace(method, lr=0.2, steps=100)(Run(), **actors | {"student": volume, "teacher": copy.deepcopy(student)})
    return {"the teacher": actors["teacher"], "without active learning": variant("pvd_al", seed, **EVEN),
            "what is rendered alone": variant("pvd_al", seed, **RENDERED),
            "photographs, twice the steps": _alone(seed, _home(), method, 2), "the student made into a volume": back}


def _views(hidden: Photographs, teacher: Field, student: Field, alone: Field) -> dict[str, Tensor]:
    shown = {"photographs that nobody learnt from": hidden.images, "the teacher": shot(teacher, hidden),
             "the student": shot(student, hidden), "the same network taught by photographs": shot(alone, hidden)}
    return {name: images.movedim(-1, 1) for name, images in shown.items()}


def fresh(kind: str, bound: float, seed: int) -> Field:
    """A field of a kind that knows nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        field: Any = zoo.model(f"{KINDS[kind]}&bound={bound}&grid={GRID}")
    field.drawn = None                          # even after a step that left its last layer alone it may teach
    return field


@lru_cache(maxsize=4)
def _ground(seed: int, home: Path | None) -> tuple[Photographs, Photographs, Field]:
    """Photographs to learn from, those that are held out, and the teacher."""
    everything = _drawn() if home is None else _lego(home)
    order = torch.randperm(len(everything.images), generator=torch.Generator().manual_seed(seed))
    hidden, seen = (everything._replace(images=everything.images[i], poses=everything.poses[i])
                    for i in (order[:HELD_OUT], order[HELD_OUT:]))
    return seen, hidden, _fitted("table", Fitting(lr=0.03, rays=256, samples=SAMPLES, prune=20, steps=300), seen, seed)


def _fitted(kind: str, fitting: Fitting, to: Photographs, seed: int, occupied: Tensor | None = None) -> Field:
    net = fresh(kind, to.bound, seed)
    net.occupied.copy_(net.occupied if occupied is None else occupied)
    return fitting(Run(seed=seed, device="cpu"), field=net, images=to.images, poses=to.poses, focal=to.focal)


@lru_cache(maxsize=4)
def _alone(seed: int, home: Path | None, method: Any, times: int = 1) -> Field:
    seen, _, teacher = _ground(seed, home)
    fitting = Fitting(lr=method.lr, rays=method.rays, samples=SAMPLES, steps=times * method.steps)
    return _fitted("mlp", fitting, seen, seed, teacher.occupied)


def _home() -> Path | None:
    """Where the Lego photographs lie, if they do."""
    try:
        return shared.home("nerf_lego")
    except Refused:
        return None


@lru_cache(maxsize=1)
def _lego(home: Path) -> Photographs:
    found = arrays.read(home / "nerf_lego_100x100.npz")
    rgba = torch.from_numpy(found["images_premultiplied_rgba"].astype(np.float32) / 255)
    white = (rgba[..., :3] + 1 - rgba[..., 3:]).movedim(-1, 1)
    smaller = white.shape[2] // SIDE
    return Photographs(F.avg_pool2d(white, smaller).movedim(1, -1).contiguous(), torch.from_numpy(found["poses"]).float(),
                       float(found["focal"]) / smaller, 1.3, "nerf_lego, 50 × 50 pixels")


@lru_cache(maxsize=1)
def _drawn() -> Photographs:
    return Photographs(*solids.photographs(40, SIDE, 0), solids.BOUND, "drawn solids, 50 × 50 pixels")
