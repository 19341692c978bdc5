"""FerKD: Surgical Label Adaptation for Efficient Distillation

Shen — ICCV 2023 — https://arxiv.org/abs/2312.17473

    teacher   frozen network, asked once about many random crops of every image; its likeliest classes are kept
    reads     logits
    compares  cross-entropy with the stored probabilities, or with a softened label where the teacher is unsure
    views     stored random crops, several of an image at a step; two crops of one image are mixed (SelfMix)
    data      labels optional: where there is none, an unsure teacher is believed
    weights   crops of which the teacher is too unsure, or too sure, are dropped
    learns    student weights
    note      reconstruction: the thresholds of confidence, the softening and how often crops are mixed
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset

from stillroom.arenas.regions import LEAST, regions
from stillroom.batches import tagged
from stillroom.measure import Proof
from stillroom.parts import optim, views
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.schedules import cosine
from stillroom.recipe import Recipe
from stillroom.run import Run
from stillroom.store import Views
from stillroom.store.regions import Several, asked, confidence, crop


@dataclass(frozen=True, kw_only=True)
class FerKD(Recipe):
    low: float = 0.15         # crops of which the teacher is less sure are dropped, T_L; 0 with middle=0 and easy=1: FKD
    middle: float = 0.3       # below this confidence the label is trusted, from it on the teacher, T_M
    easy: float = 1.0         # crops of which it is surer are dropped, T_T
    smoothing: float = 0.1    # taken from the label and spread over the other classes, ε
    mixup: float = 0.8        # α of SelfMix by mixup
    cutmix: float = 1.0       # α of SelfMix by CutMix; each step takes one of the two
    crops: int = 500          # stored of every image
    least: float = 0.08       # smallest share of the image in a crop
    flip: float = 0.5         # chance that a crop is mirrored
    size: int = 0             # side of a crop in pixels; 0: that of the image
    codec: str = "top5"       # how the teacher's answers are kept: its five likeliest classes, the rest spread evenly
    each: int = 4             # crops of an image at a step
    lr: float = 0.2           # of SGD with momentum 0.9, cosine to 0: 0.1 for 512 crops
    decay: float = 1e-4       # weight decay
    batch: int = 256          # images per step
    steps: int = 375_000      # updates: 300 crops of each of 1.28 million images

    def distill(self, run: Run, student: Module, teacher: Module, data: Dataset) -> Module:
        """`data` may be `store.Views`, when `teacher` is what `store.write` stored of them (`teachers.Cached`)."""
        seen = data if isinstance(data, Views) else Views(
            data, partial(crop, scale=(self.least, 1.0), size=self.size, flip=self.flip), self.crops, run.seed)
        told = asked(run.folder and run.folder / "labels", teacher, seen, self.codec, run.device)
        sure = confidence(told)                                                      # [crops · samples]
        some = Several(seen, self.each, (sure >= self.low) & (sure <= self.easy))
        opt = optim.sgd(student, lr=cosine(self.lr), decay=self.decay)
        run.keep(student=student, opt=opt)

        for x, y, at in run.loop(some, batch=self.batch, steps=self.steps):
            x, y = tagged(x.flatten(0, 1), at.flatten().cpu()), y.repeat_interleave(self.each)
            x, soft = self.selfmix(x, self.adapted(told(x).softmax(-1), y))          # [batch·each, …], [batch·each, classes]
            run.update(opt, soft=-(soft * student(x).log_softmax(-1)).sum(-1).mean())

        return student

    def adapted(self, soft: Tensor, y: Tensor) -> Tensor:
        """The teacher's probabilities [crops, classes], and the softened label where its confidence is below T_M."""
        label = views.soft_labels(y, soft.shape[1], self.smoothing * soft.shape[1] / (soft.shape[1] - 1))
        hard = (soft.amax(-1) < self.middle) & (y != UNLABELLED)
        return torch.where(hard[:, None], label, soft)

    def selfmix(self, x: Tensor, soft: Tensor) -> tuple[Tensor, Tensor]:
        """Every crop mixed with the next of the same image, and their labels alike."""
        mix, alpha = (views.mixup, self.mixup) if torch.rand(()) < 0.5 else (views.cutmix, self.cutmix)
        other = torch.arange(len(x), device=x.device).view(-1, self.each).roll(-1, 1).flatten()
        return mix(x, soft, alpha, other)


def trial(seed=0):
    """Handwritten digits, ten crops of each; settings chosen on seeds 10 to 12, where SelfMix was of no use to so small a net."""
    return FerKD(low=0.35, middle=0.7, mixup=0.0, cutmix=0.0, crops=10, least=LEAST, flip=0.0, lr=0.1, batch=16,
                 steps=600), regions(seed)


def proof(student, cast):
    """Better than FKD, the same without label adaptation; labels alone, on the same crops, and SelfMix are beside it."""
    also = {"labels alone": cast.other(low=0.0, middle=2.0, smoothing=0.0), "with SelfMix": cast.other(mixup=0.8, cutmix=1.0),
            "the teacher": cast.actors["teacher"]}
    return Proof(cast.accuracy(student), beats=cast.accuracy(cast.other(low=0.0, middle=0.0)), unit="accuracy", baseline="FKD",
                 also={who: cast.accuracy(net) for who, net in also.items()})
