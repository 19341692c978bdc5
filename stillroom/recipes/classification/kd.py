"""KD: Distilling the Knowledge in a Neural Network

Hinton, Vinyals, Dean — NIPS workshop 2014 — https://arxiv.org/abs/1503.02531

    teacher   frozen network
    reads     logits
    compares  KL of softened probabilities, beside the labels
    views     one, shared
    data      labels optional: a sample without one learns from the teacher alone
    learns    student weights
"""

from dataclasses import dataclass

from torch.nn import Module
from torch.utils.data import Dataset

from stillroom import arenas
from stillroom.measure import Proof
from stillroom.parts import losses, optim
from stillroom.parts.schedules import cosine
from stillroom.parts.teachers import Frozen
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class KD(Recipe):
    temperature: float = 4.0  # softens teacher and student alike, T
    alpha: float = 0.9        # share of the teacher in the loss; the labels get the rest
    lr: float = 0.05          # of SGD with momentum 0.9, cosine to 0
    decay: float = 5e-4       # weight decay
    batch: int = 64           # samples per step
    steps: int = 60_000       # updates

    def distill(self, run: Run, student: Module, teacher: Module, data: Dataset) -> Module:
        teacher = Frozen(teacher)
        opt = optim.sgd(student, lr=cosine(self.lr), decay=self.decay)
        run.keep(student=student, opt=opt)

        for x, y in run.loop(data, batch=self.batch, steps=self.steps):
            logits = student(x)                                      # [batch, classes]
            soft = losses.kl(logits, teacher(x), self.temperature)
            hard = losses.labels(logits, y)
            run.update(opt, soft=self.alpha * soft, hard=(1 - self.alpha) * hard)

        return student


def trial(seed=0):
    """Handwritten digits, fifty labels, the rest unlabelled; the teacher has seen every label."""
    return KD(steps=600), arenas.digits("few", seed)


def proof(student, cast):
    """Better than the same student taught by the labels alone."""
    return Proof(cast.accuracy(student), beats=cast.accuracy(cast.alone()), unit="accuracy")
