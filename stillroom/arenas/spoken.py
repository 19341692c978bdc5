"""Spoken digits: recordings of six speakers where the Free Spoken Digit Dataset is on this machine, else voices by a formula."""

import copy
import math
from dataclasses import replace
from functools import lru_cache, partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module
from torch.utils.data import TensorDataset

from stillroom.arenas.cast import Cast, variant
from stillroom.errors import Refused
from stillroom.measure.classification import predict
from stillroom.measure.features import linear_probe
from stillroom.models.hubert import Hubert, Shape
from stillroom.parts import optim
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.mel import log_mel
from stillroom.parts.schedules import cosine
from stillroom.run import Run

RATE, LENGTH = 8000, 4096            # samples a second; of a clip, which is cut or filled with silence
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CONVS = ((32, 40, 20), (32, 8, 4), (32, 4, 2))          # width, kernel, stride: 160 samples a frame
FRAMES, UNITS = 23, 50               # of a clip; clusters of frames that the teacher learns to name
STEPS = 300                            # of the teacher
LARGE: Shape = {"dim": 32, "heads": [4, 4], "hidden": [96, 96]}
SHAPES: tuple[Shape, ...] = ({"dim": 8, "heads": [2, 2], "hidden": [16, 16]}, {"dim": 8, "heads": [4, 4], "hidden": [24, 24]},
                             {"dim": 16, "heads": [2, 2], "hidden": [32, 32]})         # slices that are judged
LABELS, DRAWS = 150, 6                # labelled clips of which a probe learns, and how often they are drawn


def spoken(seed: int = 0) -> Cast:
    """Clips without labels, a small HuBERT that has learnt units and digits, and a fresh one as supernet, which reads the wave as
    the teacher does: the convolutions are taken over and stay as they are.

    slices(net)      accuracy of linear probes on the mean frame, in percent, mean over `SHAPES` and draws of 150 labels
    reads(net)       the same of one network
    fresh()          the supernet before it learns; teacher()
    whole()          a supernet of which only the whole is taught, as many steps
    alone(shape)     a network of this shape, which begins as that slice of the fresh one, taught by itself, as many steps
    """
    ground, taught = clips(), teacher(seed)
    actors = {"student": _fresh(seed), "teacher": copy.deepcopy(taught), "data": unlabelled(ground.train)}
    reads = partial(_reads, seed=seed)
    return Cast(actors, data=words(), real=ground.real, shapes=SHAPES, reads=reads, teacher=lambda: taught,
                fresh=lambda: _fresh(seed), slices=lambda net: sum(reads(net.cut(shape)) for shape in SHAPES) / len(SHAPES),
                whole=lambda: _whole(seed), alone=lambda shape: _alone(seed, shape))


def words() -> str:
    return "Free Spoken Digit Dataset, half a second at 8 kHz" if clips().real else "voices by a formula that say ten syllables"


def unlabelled(data: TensorDataset) -> TensorDataset:
    x, y = data.tensors
    return TensorDataset(x, torch.full_like(y, UNLABELLED))


@lru_cache(maxsize=1)
def clips() -> SimpleNamespace:
    """Waves [clips, LENGTH] of mean square 1 and their digits in three parts: train, valid (takes 5 to 9 of each speaker and
    digit), test (takes 0 to 4, the official split). real: whether they were recorded."""
    from stillroom.zoo import arrays, shared

    try:
        found = arrays.read(shared.home("fsdd") / "fsdd.npz")
    except Refused:
        return _split(*_drawn(), real=False)
    audio, at = found["audio"], found["offsets"]
    waves = torch.zeros(len(at) - 1, LENGTH)
    for n, (a, b) in enumerate(pairwise(at)):
        own = torch.from_numpy(audio[a : min(b, a + LENGTH)].astype(np.float32))
        waves[n, : len(own)] = own
    digits, take = (torch.from_numpy(found[k].astype(np.int64)) for k in ("labels", "index"))
    return _split(waves, digits, take, real=True)


def _split(waves: Tensor, digits: Tensor, take: Tensor, real: bool) -> SimpleNamespace:
    waves = waves / waves.square().mean(1, keepdim=True).sqrt()
    part = {"train": take > 9, "valid": (take > 4) & (take < 10), "test": take < 5}
    return SimpleNamespace(real=real, **{name: TensorDataset(waves[own], digits[own]) for name, own in part.items()})


def _drawn() -> tuple[Tensor, Tensor, Tensor]:
    """Six voices say ten syllables, twenty takes each: harmonics of a falling pitch under two resonances that move from one
    vowel to another, in noise. Waves, syllables, takes."""
    dice = torch.Generator().manual_seed(0)
    digit, voice, take = (t.flatten() for t in torch.meshgrid(torch.arange(10), torch.arange(6), torch.arange(20), indexing="ij"))
    vowels = torch.tensor([[300.0, 2300], [650, 1700], [750, 1200], [500, 900], [320, 800]])       # first and second resonance
    pairs = torch.tensor([(a, b) for a in range(5) for b in range(5) if a != b])[::2][:10]
    time, n = torch.arange(LENGTH) / RATE, len(digit)
    lasts = 0.25 + 0.2 * torch.rand(n, 1, generator=dice)                                      # seconds
    turn = 0.2 + 0.3 * torch.rand(n, 1, generator=dice)
    way = ((time / lasts - turn) / 0.4).clamp(0, 1)                                            # [clips, samples], 0 to 1
    long = 0.85 + 0.06 * voice[:, None] + 0.06 * torch.randn(n, 1, generator=dice)             # of the voice's tract
    first, second = (long * torch.lerp(vowels[pairs[digit, 0], k, None], vowels[pairs[digit, 1], k, None], way) for k in (0, 1))
    pitch = (90 + 22 * voice[:, None]) * (1 + 0.05 * torch.randn(n, 1, generator=dice)) * (1 - 0.2 * time / lasts)
    phase, x = 2 * math.pi * pitch.cumsum(1) / RATE, 0.3 * torch.randn(n, LENGTH, generator=dice)
    for k in range(1, 17):
        loud = torch.exp(-(((k * pitch - first) / 120) ** 2)) + 0.5 * torch.exp(-(((k * pitch - second) / 180) ** 2))
        x += loud * torch.sin(k * phase) * (time < lasts)
    return x, digit, take


def _net(shape: Shape) -> Hubert:
    return Hubert(**shape, each=8, convs=CONVS, norm="layer", bias=True, kernel=8, groups=4, drop=0.0)


def _fresh(seed: int) -> Hubert:
    torch.manual_seed(1000 + seed)
    net = _net(LARGE)
    net.feature_extractor.load_state_dict(teacher(seed).feature_extractor.state_dict())
    net.feature_extractor.requires_grad_(False)
    return net


@lru_cache(maxsize=4)
def teacher(seed: int) -> Hubert:
    """Learns to name the cluster of each frame, masked or not (Hsu et al. 2021), and the digit. It begins with windowed waves."""
    x, y = clips().train.tensors
    units = _units()
    torch.manual_seed(seed)
    net, unit, digit = _net(LARGE), nn.Linear(32, UNITS), nn.Linear(32, len(WORDS))
    first: Any = net.feature_extractor.conv_layers[0].conv
    angle = 2 * math.pi * torch.linspace(100, 3600, 16)[:, None] * (torch.arange(40) - 19.5) / RATE
    with torch.no_grad():
        first.weight.copy_(0.3 * (torch.cat([angle.cos(), angle.sin()]) * torch.hann_window(40))[:, None])
    run, opt = Run(seed=seed, device="cpu"), optim.adamw(net, unit, digit, lr=cosine(3e-3, warmup=0.1), clip=1.0)
    run.keep(net=net, unit=unit, digit=digit, opt=opt)
    for waves, named, said in run.loop(TensorDataset(x, units, y), batch=16, steps=STEPS):
        masked = torch.rand(named.shape) < 0.2
        frames = net(waves, masked=masked)
        lost = F.cross_entropy(unit(frames).mT, named, reduction="none")
        told = F.cross_entropy(digit(frames).mean(1), said)
        run.update(opt, masked=lost[masked].mean(), seen=lost[~masked].mean(), digit=2 * told)
    return net.eval()


@lru_cache(maxsize=1)
def _units() -> Tensor:
    """The cluster of each frame of the training clips, [clips, FRAMES], by its log-mel spectrum."""
    from sklearn.cluster import MiniBatchKMeans

    mel = log_mel(clips().train.tensors[0], RATE, 320, 160, 40)[..., :FRAMES].mT                # [clips, frames, 40]
    frames = ((mel - mel.mean((0, 1))) / mel.std((0, 1))).flatten(0, 1).numpy()
    clusters = MiniBatchKMeans(UNITS, random_state=0, n_init=1).fit(frames[::3])
    return torch.from_numpy(clusters.predict(frames)).long().view(len(mel), FRAMES)


class Pooled(Module):
    """The mean of what a network says of the frames, [batch, dim]."""

    def __init__(self, net: Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).mean(1)


def _reads(net: Module, seed: int) -> float:
    train, test = (part.tensors for part in (clips().train, clips().test))
    known, asked = (predict(Pooled(net), x) for x in (train[0][::3], test[0]))
    return few_labels((known, train[1][::3]), (asked, test[1]), seed)


def few_labels(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], seed: int) -> float:
    """Accuracy of linear probes, each taught by 150 clips drawn anew, in percent; features [clips, width] and digits."""
    dice, reached = torch.Generator().manual_seed(seed), []
    for _ in range(DRAWS):
        some = torch.randperm(len(train[1]), generator=dice)[:LABELS]
        reached.append(linear_probe((train[0][some], train[1][some]), test, strength=0.1))
    return sum(reached) / DRAWS


@lru_cache(maxsize=4)
def _whole(seed: int) -> Hubert:
    return variant("lighthubert", seed, **_in_one(seed))


def _in_one(seed: int) -> dict[str, Any]:
    """All steps of the trial in the first stage."""
    from stillroom.recipes.audio.lighthubert import trial  # which stands on this ground itself

    method, _ = trial(seed)
    return {"steps_whole": method.steps_whole + method.steps, "steps": 0}


def _alone(seed: int, shape: Shape) -> Hubert:
    from stillroom.recipes.audio.lighthubert import trial

    method, cast = trial(seed)
    method = replace(method, dims=(shape["dim"],), heads=(min(shape["heads"]),),
                     ratios=(min(shape["hidden"]) / shape["dim"],), **_in_one(seed))
    student = cast.actors["student"].cut(shape)
    student.feature_extractor.requires_grad_(False)
    return method(Run(seed=seed), **{**cast.actors, "student": student})
