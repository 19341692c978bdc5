"""MEAL V2: Boosting Vanilla ResNet-50 to 80%+ Top-1 Accuracy on ImageNet without Tricks

Shen, Savvides — NeurIPS workshop 2020 — https://arxiv.org/abs/2009.08453

    teacher   several frozen networks, which speak as one: the mean of their probabilities
    reads     logits
    compares  cross-entropy with the mean probabilities; a discriminator tells the student's logits from the teachers' mean logits
    views     one, shared; CutMix on the images where it is wanted
    data      labels are never read
    learns    student weights, from a student that is trained already; the discriminator, which is dropped afterwards
    note      reconstruction: text and released code differ in the sign of the discriminator's gradient in the student (`reverse`)
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module
from torch.utils.data import Dataset

from stillroom.arenas.ensemble import ensemble
from stillroom.batches import ids, tagged, whole
from stillroom.measure import Proof
from stillroom.parts import optim, views
from stillroom.parts.schedules import steps
from stillroom.parts.teachers import Frozen
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class MEALV2(Recipe):
    reverse: float = 1.0    # the student climbs the discriminator's loss by so much, λ; −1 descends it, as the released code does
    narrow: int = 8         # the discriminator's layers: each so many times narrower than the one before, never below 2
    relu: bool = False      # behind the discriminator's last layer, too, as in the released code
    cutmix: float = 0.0     # α of CutMix on the images; 1 in the best row of the paper's table 1
    lr: float = 0.01        # of SGD with momentum 0.9, for both networks
    drop: float = 0.5556    # share of the training after which the rate is a tenth: 100 of 180 epochs
    decay: float = 0.0      # weight decay
    batch: int = 512        # samples per step
    steps: int = 450_000    # updates: 180 epochs of 1.28 million images

    def distill(self, run: Run, student: Module, teacher: Module, data: Dataset, others: list[Module] | None = None) -> Module:
        """`others`: the further teachers; the paper has one beside the first."""
        teachers = [Frozen(net) for net in (teacher, *(others or []))]
        sample = tagged(whole(data, 2)[0].to(run.device), ids(data)[:2])
        judge = discriminator(teachers[0](sample).shape[1], self.narrow, self.relu).to(run.device)
        opt = optim.sgd(student, judge, lr=steps(self.lr, self.drop), decay=self.decay)
        run.keep(student=student, judge=judge, opt=opt)

        for x, _ in run.loop(data, batch=self.batch, steps=self.steps):
            x = views.cutmix(x, x.new_zeros(len(x), 1), self.cutmix)[0]
            logits = student(x)                                                      # [batch, classes]
            taught = torch.stack([net(x) for net in teachers])                       # [teachers, batch, classes]
            similar = -(taught.softmax(-1).mean(0) * logits.log_softmax(-1)).sum(-1).mean()
            told = judge(torch.cat([reverse(logits, self.reverse), taught.mean(0)]))  # [2·batch, 2]
            who = torch.arange(2, device=x.device).repeat_interleave(len(x))         # first the student's, then the teachers'
            run.update(opt, similar=similar, judge=F.binary_cross_entropy_with_logits(told.float(), F.one_hot(who).float()))
            run.log(told_apart=(told.argmax(-1) == who).float().mean())

        return student


def reverse(x: Tensor, scale: float = 1.0) -> Tensor:
    """`x` itself, whose gradient is turned around and multiplied by `scale` (Ganin & Lempitsky 2015, eq. 10 and 11); any shape.
    What learns after it descends a loss that what learns before it climbs."""
    return (1 + scale) * x.detach() - scale * x


def discriminator(classes: int, narrow: int = 8, relu: bool = False) -> nn.Sequential:
    """Logits [batch, classes] → scores for "student" and "teacher", [batch, 2]; 1 × 1 convolutions of a vector are linear."""
    first, second = max(classes // narrow, 2), max(classes // narrow**2, 2)
    layers = [nn.Linear(classes, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 2)]
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


def trial(seed=0):
    """Handwritten digits; the student has learnt from labels of which two in five are wrong, its teachers from right ones.
    Settings chosen on validation images of seeds 10 to 12."""
    return MEALV2(narrow=1, lr=0.1, batch=64, steps=600), ensemble(seed)


def proof(student, cast):
    """Better than the same student taught on by the labels; plain KD from each teacher alone is beside it."""
    return Proof(cast.accuracy(student), beats=cast.accuracy(cast.alone()), unit="accuracy", baseline="taught on by the labels",
                 also={f"plain KD, teacher {i + 1}": cast.accuracy(cast.kd(i)) for i in range(2)})
