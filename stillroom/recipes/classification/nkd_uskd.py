"""NKD and USKD: From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and Customized Soft Labels

Yang, Zeng, Li, Zhang, Yuan, Li — ICCV 2023 — https://arxiv.org/abs/2303.13005

    teacher   NKD: a frozen network; USKD, without teacher: the student itself, and a weak head on an early feature of it
    reads     logits, split into that of the target and those of the others
    compares  the target's probability; the others' distribution, normalised without the target
    views     one, shared
    data      NKD: labels optional (where there is none the teacher's best guess is the target); USKD: the labelled samples
    learns    student weights; USKD: the weak head, too, which is dropped afterwards
"""  # noqa: E501

from dataclasses import dataclass

from torch import nn
from torch.nn import Module
from torch.utils.data import Dataset

from stillroom import arenas
from stillroom.batches import whole
from stillroom.errors import Refused
from stillroom.measure import Proof
from stillroom.parts import losses, optim
from stillroom.parts.losses.logits import UNLABELLED, nkd_others, nkd_target, uskd_others, uskd_target
from stillroom.parts.pairs import by_label
from stillroom.parts.places import intermediate, pooled
from stillroom.parts.schedules import cosine
from stillroom.parts.taps import Tap
from stillroom.parts.teachers import Frozen
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class NKD(Recipe):
    temperature: float = 1.0    # NKD: softens the others, τ; 3 on CIFAR-100
    gamma: float = 1.5          # NKD: weight of the others, γ; 3.5 on CIFAR-100, 1 for DeiT-Tiny
    alpha: float = 1.0          # USKD: weight of the target, α; 0.1 on CIFAR-100
    beta: float = 0.1           # USKD: weight of the others, β
    mu: float = 0.005           # USKD: weight of the weak head's own loss, μ; 0.1 on CIFAR-100
    smoothing: float = 0.1      # USKD: of the weak head's labels
    mix: str = "probability"    # USKD: ranks the others by probabilities (paper) or as the released "code"
    tap: str = ""               # USKD: module that the weak head reads; empty: the end of the last stage but one
    lr: float = 0.05            # of SGD with momentum 0.9, cosine to 0
    decay: float = 5e-4         # weight decay
    batch: int = 64             # samples per step
    steps: int = 60_000         # updates

    def distill(self, run: Run, student: Module, data: Dataset, teacher: Module | None = None) -> Module:
        if teacher is None:
            return self.by_itself(run, student, data)
        teacher = Frozen(teacher)
        opt = optim.sgd(student, lr=cosine(self.lr), decay=self.decay)
        run.keep(student=student, opt=opt)

        for x, y in run.loop(data, batch=self.batch, steps=self.steps):
            logits, taught = student(x), teacher(x)                          # [batch, classes]
            target = y.where(y != UNLABELLED, taught.argmax(-1))
            run.update(opt, labels=losses.labels(logits, y), target=nkd_target(logits, taught, target),
                       others=self.gamma * nkd_others(logits, taught, target, self.temperature))

        return student

    def by_itself(self, run: Run, student: Module, data: Dataset) -> Module:
        """USKD: the soft label of the target follows the student's certainty in the batch, those of the others Zipf's law."""
        data = by_label(data)[0]
        if not len(data):
            raise Refused("no sample has a label, and USKD learns from labels", "give a teacher: NKD needs none")
        sample = whole(data, 2)[0].to(run.device)
        tap = Tap(student.eval(), self.tap or intermediate(student, sample))
        logits, (early,) = tap(sample)
        weak = nn.Linear(pooled(early).shape[1], logits.shape[1], device=run.device)
        opt = optim.sgd(student, weak, lr=cosine(self.lr), decay=self.decay)
        run.keep(student=student, weak=weak, opt=opt)

        # P_t holds the mean over the batch: no part of a batch can stand for it
        for x, y in run.loop(data, batch=self.batch, steps=self.steps, whole=True):
            logits, (early,) = tap(x)
            guess = weak(pooled(early))                                      # [batch, classes]
            run.update(opt, labels=losses.labels(logits, y), target=self.alpha * uskd_target(logits, y),
                       others=self.beta * uskd_others(logits, guess, y, self.mix),
                       weak=self.mu * losses.labels(guess, y, self.smoothing))
        return student


def trial(seed=0):
    """Handwritten digits, two labels in five wrong; the teacher has seen the right ones."""
    return NKD(steps=600), arenas.digits("noisy", seed)


def proof(student, cast):
    """Better than the same student taught by the wrong labels alone; plain KD on the same ground is beside it."""
    return Proof(cast.accuracy(student), beats=cast.accuracy(cast.alone()), unit="accuracy",
                 also={"plain KD": cast.accuracy(cast.kd())})
