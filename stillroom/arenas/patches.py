"""Handwritten digits as patches: a masked autoencoder as teacher, its fine-tuned twin, and a student of half the width."""

import copy
from functools import lru_cache

import torch
from torch.nn import Module

from stillroom.arenas.cast import Cast
from stillroom.arenas.digits import digits
from stillroom.measure import accuracy
from stillroom.models.vit import MAE, ViT
from stillroom.parts import losses, optim, views
from stillroom.parts.pairs import by_label
from stillroom.parts.schedules import cosine
from stillroom.run import Run

STEPS, STEPS_TUNING = 300, 200      # of the student's pre-training and fine-tuning: the budget of the trial


def patches(seed: int = 0) -> Cast:
    """Images of 8 × 8 in patches of 2 × 2; fifty labels, the rest unlabelled; the teacher's twin has seen every label."""
    ground, (teacher, expert) = digits("few", seed), _teacher(seed)
    actors = {"student": _student(seed), "teacher": copy.deepcopy(teacher), "expert": copy.deepcopy(expert),
              "data": ground.actors["data"]}
    return Cast(actors, data=ground.data, valid=ground.valid, test=ground.test, accuracy=lambda net: accuracy(net, ground.test),
                alone=lambda: _alone(seed), specific=lambda: _specific(seed))


def _mae(dim: int, depth: int) -> MAE:
    return MAE(ViT(image=8, patch=2, channels=1, dim=dim, depth=depth, heads=4), dim=dim, depth=2, heads=4)


def _student(seed: int) -> MAE:
    torch.manual_seed(2000 + seed)
    return _mae(32, 2)


@lru_cache(maxsize=4)
def _teacher(seed: int) -> tuple[MAE, Module]:
    torch.manual_seed(seed)
    everything = digits("clean", seed).actors["data"]
    mae = _pretrained(_mae(64, 3), everything, seed, 600)
    return mae, _tuned(copy.deepcopy(mae.encoder), everything, seed, 400)


@lru_cache(maxsize=4)
def _alone(seed: int) -> Module:
    data = digits("few", seed).actors["data"]
    return _tuned(_pretrained(_student(seed), data, seed).encoder, by_label(data)[0], seed)


@lru_cache(maxsize=4)
def _specific(seed: int) -> Module:
    """Pre-trained by itself, then the specific stage of G2SD: what the generic stage adds is the difference to G2SD."""
    from dataclasses import replace

    from stillroom.recipes.selfsup.g2sd import trial

    method, cast = trial(seed)
    actors = {**cast.actors, "student": _pretrained(_student(seed), cast.actors["data"], seed)}
    return replace(method, steps=0)(Run(seed=seed), **actors)


def _pretrained(mae: MAE, data, seed: int, steps: int = STEPS) -> MAE:
    """A masked autoencoder by pixels (He et al. 2022)."""
    run, opt = Run(seed=seed), optim.adamw(mae, lr=cosine(3e-3, warmup=0.1), decay=0.05, betas=(0.9, 0.95))
    run.keep(mae=mae, opt=opt)
    for x, _ in run.loop(data, batch=64, steps=steps):
        run.update(opt, pixels=mae.loss(x, views.visible(torch.rand(len(x), mae.encoder.tokens), 0.75)))
    return mae


def _tuned(encoder: ViT, data, seed: int, steps: int = STEPS_TUNING) -> Module:
    """The encoder with a linear head, taught by labels."""
    torch.manual_seed(3000 + seed)
    encoder.head = torch.nn.Linear(encoder.dim, 10)
    run, opt = Run(seed=seed), optim.adamw(encoder, lr=cosine(3e-3, warmup=0.1), decay=0.05)
    run.keep(encoder=encoder, opt=opt)
    for x, y in run.loop(data, batch=64, steps=steps):
        run.update(opt, labels=losses.labels(encoder(x), y))
    return encoder.eval()
