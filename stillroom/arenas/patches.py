"""Handwritten digits as patches: a masked autoencoder as teacher, its fine-tuned twin, and a student of half the width."""

import copy
from dataclasses import replace
from functools import lru_cache
from typing import Literal

import torch
from torch.nn import Module

from stillroom.arenas.cast import Cast
from stillroom.arenas.digits import split
from stillroom.measure import accuracy
from stillroom.models.vit import MAE, ViT
from stillroom.parts import losses, optim, views
from stillroom.parts.schedules import cosine
from stillroom.run import Run

STEPS, STEPS_TUNING = 300, 400      # of the student's pre-training and of what follows: the budget of the trial
Start = Literal["scratch", "self", "generic"]


def patches(seed: int = 0) -> Cast:
    """Images of 8 × 8 in patches of 2 × 2; fifty labels, the rest unlabelled; the teacher's twin has seen every label.

    The student may start from scratch, pre-trained by itself, or from G2SD's generic stage, and then go on with
    labels(start)    the fifty labelled images alone
    specific(start)  G2SD's specific stage; from "generic" that is G2SD itself
    """
    ground, (teacher, expert) = split("few", seed), _teacher(seed)
    actors = {"student": _student(seed), "teacher": copy.deepcopy(teacher), "expert": copy.deepcopy(expert), "data": ground.train}
    return Cast(actors, data="scikit-learn digits, few", valid=ground.valid, test=ground.test,
                accuracy=lambda net: accuracy(net, ground.test), labels=lambda start: _labels(start, seed),
                specific=lambda start: _specific(start, seed))


def _mae(dim: int, depth: int) -> MAE:
    return MAE(ViT(image=8, patch=2, channels=1, dim=dim, depth=depth, heads=4), dim=dim, depth=2, heads=4)


def _student(seed: int) -> MAE:
    torch.manual_seed(2000 + seed)
    return _mae(32, 2)


@lru_cache(maxsize=4)
def _teacher(seed: int) -> tuple[MAE, Module]:
    torch.manual_seed(seed)
    data = split("clean", seed).train
    mae = _pretrained(_mae(64, 3), data, seed)
    return mae, _tuned(copy.deepcopy(mae.encoder), data, seed, lr=3e-3, batch=64)


@lru_cache(maxsize=4)
def _started(start: Start, seed: int) -> MAE:
    if start == "self":
        return _pretrained(_student(seed), split("few", seed).train, seed)
    if start == "generic":
        student, method, actors = _trial(seed)
        replace(method, steps_specific=0)(Run(seed=seed), student=student, **actors)
        return student
    return _student(seed)


@lru_cache(maxsize=8)
def _labels(start: Start, seed: int) -> Module:
    return _tuned(copy.deepcopy(_started(start, seed).encoder), split("few", seed).labelled, seed, lr=6e-3, batch=32)


@lru_cache(maxsize=8)
def _specific(start: Start, seed: int) -> Module:
    _, method, actors = _trial(seed)
    return replace(method, steps=0)(Run(seed=seed), student=copy.deepcopy(_started(start, seed)), **actors)


def _trial(seed: int):
    from stillroom.recipes.selfsup.g2sd import trial  # which stands on this ground itself

    method, cast = trial(seed)
    return cast.actors.pop("student"), method, cast.actors


def _pretrained(mae: MAE, data, seed: int) -> MAE:
    """A masked autoencoder by pixels (He et al. 2022)."""
    run, opt = Run(seed=seed), optim.adamw(mae, lr=cosine(3e-3, warmup=0.1), decay=0.05, betas=(0.9, 0.95))
    run.keep(mae=mae, opt=opt)
    for x, _ in run.loop(data, batch=64, steps=STEPS):
        run.update(opt, pixels=mae.loss(x, views.visible(torch.rand(len(x), mae.encoder.tokens), 0.75)))
    return mae


def _tuned(encoder: ViT, data, seed: int, lr: float, batch: int) -> Module:
    """The encoder with a linear head, taught by labels."""
    torch.manual_seed(3000 + seed)
    encoder.head = torch.nn.Linear(encoder.dim, 10)
    run, opt = Run(seed=seed), optim.adamw(encoder, lr=cosine(lr, warmup=0.1), decay=0.05)
    run.keep(encoder=encoder, opt=opt)
    for x, y in run.loop(data, batch=batch, steps=STEPS_TUNING):
        run.update(opt, labels=losses.labels(encoder(x), y))
    return encoder.eval()
