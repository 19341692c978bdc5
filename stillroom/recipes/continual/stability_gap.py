"""Stability gap: Continual evaluation for lifelong learning: Identifying the stability gap

De Lange, van de Ven, Tuytelaars — ICLR 2023 — https://arxiv.org/abs/2205.13452

    teacher   none, beside a memory of earlier tasks (ER); or the student as it was when the task began (LwF: new=1, soft=1)
    reads     logits
    compares  labels, new and remembered; softened probabilities of the classes of earlier tasks
    data      labelled, in tasks that come one after another; after every update all of their exams are taken
    weights   new samples λ, remembered ones 1 − λ; the first task has nothing to replay
    learns    student weights
    note      the memory is a reservoir of the stream; the authors' is filled when a task ends, classes evenly
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset

from stillroom.arenas.rotated import rotated
from stillroom.batches import targets, to_device, whole
from stillroom.errors import Refused
from stillroom.measure import Proof, continual
from stillroom.measure.classification import predict, right
from stillroom.parts import losses, optim
from stillroom.parts.losses.logits import soft_cross_entropy
from stillroom.parts.memory import Memory
from stillroom.parts.teachers import Past
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class StabilityGap(Recipe):
    new: float = 0.3          # share of the new samples in the loss, λ; 1 replays nothing
    memory: int = 2000        # samples that are remembered
    soft: float = 0.0         # weight of the past student (LwF); 1 in the paper, where nothing is replayed beside it
    temperature: float = 2.0  # softens student and past student, T; without the factor T²
    exam: int = 1000          # samples of each exam that are asked, its first
    period: int = 1           # updates from one evaluation to the next, ρ
    lr: float = 0.01          # of SGD with momentum 0.9
    batch: int = 256          # new samples per step, and as many remembered ones
    steps: int = 470          # updates of each task: 10 epochs of 12,000 images

    def distill(self, run: Run, student: Module, tasks: list[Dataset], exams: list[Dataset]) -> tuple[Module, Tensor]:
        """The student, and its accuracy all the way, [tasks, moments, exams], for the judges of `measure.continual`."""
        if len(tasks) != len(exams) or len(tasks) < 2:
            raise Refused(f"{len(tasks)} tasks and {len(exams)} exams", "give two tasks or more, and an exam for each")
        asked = [to_device(whole(exam, self.exam), run.device) for exam in exams]
        x, y = to_device(whole(tasks[0], 1), run.device)
        memory, opt = Memory(self.memory, x=x, y=y, task=y), optim.sgd(student, lr=self.lr)
        trace = torch.zeros(len(tasks), -(-self.steps // self.period), len(tasks), device=run.device)
        run.keep(student=student, memory=memory, opt=opt, trace=trace)

        for k, task in enumerate(tasks):
            if k and self.soft:
                run.keep(**{f"past{k}": (past := Past(student))})
                old = torch.cat([targets(t) for t in tasks[:k]]).unique().to(run.device)
            for x, y in run.loop(task, batch=self.batch, steps=self.steps, name=f"task{k}", whole=True):
                logits = student(x)                                                   # [batch, classes]
                terms = {"new": self.new * losses.labels(logits, y)}
                if k and self.new < 1:
                    x_then, y_then, _ = memory.draw(self.batch, among=memory.held.task < k)
                    terms["replay"] = (1 - self.new) * losses.labels(student(x_then), y_then)
                if k and self.soft:
                    now, then = (z[:, old] / self.temperature for z in (logits, past(x)))
                    terms["soft"] = self.soft * soft_cross_entropy(now, then)
                run.update(opt, **terms)
                if run.step * self.batch < len(task):                                 # the memory sees a sample once
                    memory.add(x=x, y=y, task=torch.full_like(y, k))
                if (run.step + 1) % self.period == 0 or run.step + 1 == self.steps:
                    said = [right(predict(student, x), y.cpu()) for x, y in asked]
                    trace[k, run.step // self.period] = torch.tensor(said)
                    run.log(**{f"exam{i}": accuracy for i, accuracy in enumerate(said)})

        return student.eval(), trace


def trial(seed=0):
    """Handwritten digits, then the same turned by a right angle: replay from 400 samples."""
    return StabilityGap(new=0.5, memory=400, lr=0.05, batch=64, steps=200), rotated(seed)


def proof(made, cast):
    """More is lost of the first task and comes back than where one task is learnt twice; smaller angles and LwF are beside it."""
    ways = {"turned by 15°": {"angle": 15.0}, "turned by 45°": {"angle": 45.0}, "LwF beside it": {"soft": 1.0},
            "LwF alone": {"new": 1.0, "soft": 1.0}}
    also = {judge: getattr(continual, judge)(made[1]) for judge in ("final", "forgetting", "lowest", "worst_case")}
    also |= {who: continual.gap(cast.other(**fields)[1]) for who, fields in ways.items()}
    return Proof(continual.gap(made[1]), beats=continual.gap(cast.other(angle=0.0)[1]), unit="points lost and won back",
                 baseline="the first task again, not turned", also=also)
