"""HPCR: Holistic Proxy-based Contrastive Replay for Online Continual Learning

Lin, Feng, Zhang, Li, Ye — arXiv 2023 — https://arxiv.org/abs/2309.15038

    teacher   the student's own past: logits and features of a sample, kept with it when it came
    reads     logits, and the feature before them
    compares  sample and proxy of its class, among the proxies of the labels at hand; logits by squared error; cosines between
              the remembered samples, softened
    views     two of every sample: as it is, and changed
    data      labelled, in tasks that come one after another; each sample comes once
    weights   the contrast swings between two values; the past speaks from the second task on, of remembered samples alone
    learns    student weights and proxies
    note      reconstruction: from which batch on samples stand beside proxies is left open; in the authors' code they never do
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset

from stillroom.arenas.stream import stream
from stillroom.batches import to_device, whole
from stillroom.errors import Refused
from stillroom.measure import Proof
from stillroom.measure.cost import resting
from stillroom.parts import optim, views
from stillroom.parts.heads import Proxies
from stillroom.parts.losses.contrast import to_proxies
from stillroom.parts.losses.relations import likeness
from stillroom.parts.memory import Memory
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class HPCR(Recipe):
    memory: int = 1000         # samples that are remembered
    replay: int = 10           # of them in a step
    temperature: float = 0.09  # of cosines, τ
    high: float = 1.8          # largest weight of the contrast: 0.09 / 0.05
    low: float = 0.5625        # smallest: 0.09 / 0.16
    period: int = 500          # updates from low to high and back
    samples: bool = False      # other samples stand beside the proxies
    alpha: float = 0.1         # weight of the kept logits, α; 0.01 on CIFAR-10
    beta: float = 0.5          # weight of the kept features' cosines, β
    least: float = 0.2         # smallest share of an image in its changed view
    flip: float = 0.5          # how often it is mirrored there
    colour: float = 0.8        # how often its colours change
    lr: float = 0.1            # of SGD without momentum
    batch: int = 10            # new samples per step
    steps: int = 500           # updates of a task, at most: none of its samples comes twice

    def distill(self, run: Run, student: Module, tasks: list[Dataset]) -> Module:
        if (least := min(map(len, tasks))) < self.batch:
            raise Refused(f"a task of {least} samples fills no batch of {self.batch}", f"batch={least} or less, or larger tasks")
        x, y = to_device(whole(tasks[0], 2), run.device)
        student = Proxies(student, x, self.temperature)
        with resting(student):
            memory = Memory(self.memory, x=x, y=y, logits=student(x), feature=student.body(x))
        opt = optim.sgd(student, lr=self.lr, momentum=0.0)
        run.keep(student=student, memory=memory, opt=opt)

        for k, task in enumerate(tasks):
            updates = min(self.steps, len(task) // self.batch)
            for x, y in run.loop(task, batch=self.batch, steps=updates, name=f"task{k}", whole=True):
                feature = student.body(self.both(x))                                  # [2·batch, dim]
                then_x, then_y, then_logits, then_feature = memory.draw(self.replay)
                memory.add(x=x, y=y, logits=student.scores(feature[: len(x)]), feature=feature[: len(x)])
                if len(then_y):                                                       # the very first batch teaches nothing
                    again = student.body(self.both(then_x))                           # [2·replay, dim]
                    seen = torch.cat([then_y, then_y, y, y])
                    contrast = to_proxies(torch.cat([again, feature]), student.proxies, seen, self.temperature, self.samples)
                    terms = {"contrast": swing(run.step, self.low, self.high, self.period) * contrast}
                    if k:
                        logits = F.mse_loss(student.scores(again)[:, seen], then_logits.repeat(2, 1)[:, seen])
                        likely = likeness(again, then_feature.repeat(2, 1), self.temperature)
                        terms |= {"logits": self.alpha * logits, "likeness": self.beta * likely}
                    run.update(opt, **terms)

        return student

    def both(self, x: Tensor) -> Tensor:
        """The images as they are, then a changed view of each, [2·batch, channels, height, width]."""
        changed = views.flip(views.crops(x, 1, (self.least, 1.0))[0], self.flip)
        return torch.cat([x, views.grey(views.jitter(changed, 0.4, 0.4, 0.4, 0.1, p=self.colour))])


def swing(step: int, low: float, high: float, period: int) -> float:
    """f(i) = (high − low)·½·(1 − cos(2π·i/period)) + low."""
    return (high - low) * (1 - math.cos(2 * math.pi * step / period)) / 2 + low


def trial(seed=0):
    """Handwritten digits, two classes after two, each image once; a hundred are remembered."""
    return HPCR(memory=100, period=24, alpha=0.01, least=0.6, flip=0.0, colour=0.0, lr=0.05), stream(seed)


def proof(student, cast):
    """Better than replay with cross-entropy over all classes; the contrast alone (PCR) and the earlier classes are beside it."""
    pcr, replay = cast.other(alpha=0.0, beta=0.0, low=1.0, high=1.0), cast.replay()
    return Proof(cast.accuracy(student), beats=cast.accuracy(replay), unit="accuracy", baseline="experience replay",
                 also={"PCR": cast.accuracy(pcr), "first eight classes": cast.early(student),
                       "first eight by replay": cast.early(replay), "first eight by PCR": cast.early(pcr)})
