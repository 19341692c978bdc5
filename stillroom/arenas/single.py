"""What a second head must beat: one head that learns from labels and teacher alike."""

from dataclasses import dataclass

import torch
from torch.nn import Module
from torch.utils.data import Dataset

from stillroom.parts import losses, optim
from stillroom.parts.pairs import pairs
from stillroom.parts.schedules import linear
from stillroom.parts.teachers import Frozen
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class Single(Recipe):
    """λ·CE + (1 − λ)·KD on one head: the losses, batches and optimiser of DHO, without its second head."""

    share: float = 0.5        # of the labels in the loss, λ; the teacher gets the rest
    temperature: float = 2.0  # softens teacher and student, T
    lr: float = 1e-3          # of AdamW, risen to in the first tenth, then straight to 0
    decay: float = 0.01       # weight decay
    batch: int = 64           # labelled samples per step, and as many unlabelled ones
    steps: int = 5_000        # updates

    def distill(self, run: Run, student: Module, teacher: Module, data: Dataset) -> Module:
        teacher = Frozen(teacher)
        opt = optim.adamw(student, lr=linear(self.lr, warmup=0.1), decay=self.decay)
        run.keep(student=student, opt=opt)
        for x, y, x_u in run.loop(pairs(data), batch=self.batch, steps=self.steps):
            images = torch.cat([x, x_u])
            logits = student(images)
            soft = 2 * losses.kl(logits, teacher(images), self.temperature)
            run.update(opt, labels=self.share * losses.labels(logits[: len(x)], y), soft=(1 - self.share) * soft)
        return student
