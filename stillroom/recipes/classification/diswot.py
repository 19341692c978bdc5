"""DisWOT: Student Architecture Search for Distillation WithOut Training

Dong, Li, Wei — CVPR 2023 — https://arxiv.org/abs/2303.15678

    teacher   its architecture alone, with random weights, in the search; the trained network afterwards
    reads     logits, the last feature map, the gradient of the classifier
    compares  how samples relate, and how the channels that speak for a class relate, in a random teacher and a random student
    views     one, shared
    data      labels optional: a sample without one takes the teacher's class
    learns    an architecture, by evolution and without a gradient; then its student weights, by KD
    stages    search; KD of the winner
"""

import copy
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset, Subset

from stillroom.arenas import architectures
from stillroom.batches import whole
from stillroom.measure import Proof
from stillroom.parts import losses
from stillroom.parts.evolution import Space, child, gaussian
from stillroom.parts.losses import relations
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.places import classifier, last_map
from stillroom.parts.taps import Tap
from stillroom.parts.teachers import Frozen
from stillroom.recipe import Recipe
from stillroom.recipes.classification.kd import KD
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class DisWOT(Recipe):
    population: int = 50        # architectures alive
    tournament: int = 10        # of them compared for a parent
    limit: float = 0.0          # on the cost of an architecture, in the space's own unit; 0: none
    draws: int = 16             # random weights over which a score is averaged; one says little
    probe: int = 64             # samples that an architecture is scored on
    lr: float = 0.05            # of the winner's KD: SGD with momentum 0.9, cosine to 0
    batch: int = 64             # samples per step of KD
    steps: int = 1_000          # architectures scored
    steps_student: int = 60_000  # updates of the winner

    def distill(self, run: Run, space: Space, teacher: Module, data: Dataset) -> Module:
        x, y = map(run.place, whole(Subset(data, torch.randperm(len(data))[: self.probe].tolist()))[:2])
        y = y.where(y != UNLABELLED, Frozen(teacher)(x).argmax(-1))
        taught = read(teacher, x, y, self.draws)
        scored: list[tuple[float, Any]] = []         # and its architecture, in the order of birth
        run.keep(scored=scored)

        for _ in run.loop(steps=self.steps, name="search"):
            arch = child(space, scored, self.population, self.tournament, self.limit)
            scored.append((alike(taught, read(space.build(arch).to(run.device), x, y, self.draws)), arch))
            run.log(score=scored[-1][0])

        winner, kd = max(scored, key=lambda one: one[0])[1], KD(lr=self.lr, batch=self.batch, steps=self.steps_student)
        return kd(run.part("winner"), student=space.build(winner), teacher=teacher, data=data)


def read(net: Module, x: Tensor, y: Tensor, draws: int) -> list[tuple[Tensor, Tensor]]:
    """Of each of `draws` random networks of this architecture, in eval mode: the last feature map before pooling, [batch, …],
    and the gradient of CE in the classifier's weight, [classes, width]. The network that is given stays as it is."""
    layer, head = last_map(net, x[:1]), classifier(net, x[:1])
    net = copy.deepcopy(net).eval().requires_grad_(False)
    tap, weight, found = Tap(net, layer), net.get_submodule(head).weight.requires_grad_(), []
    for _ in range(draws):
        gaussian(net)
        with torch.autocast(x.device.type, enabled=False):
            logits, (last,) = tap(x)
            found.append((last, *torch.autograd.grad(losses.labels(logits, y), weight)))
    return found


def alike(teachers: list[tuple[Tensor, Tensor]], students: list[tuple[Tensor, Tensor]]) -> float:
    """M_r + M_s, mean over pairs of random networks; 0 is the most that can be had. Where the last layers differ in width, the
    classes are compared in place of the channels."""
    scores = []
    for (map_t, grad_t), (map_s, grad_s) in zip(teachers, students, strict=True):
        semantic = relations.channels_of_one if grad_t.shape == grad_s.shape else relations.gram
        scores.append(-(relations.gram(map_s, map_t) + semantic(grad_s, grad_t)).item())
    return fmean(scores)


def trial(seed=0):
    """Cells of six edges and five operations, on handwritten digits; no more than 0.4 of the teacher's parameters."""
    cast = architectures.cells(seed)
    return DisWOT(population=20, tournament=5, limit=cast.limit, steps=60, steps_student=cast.steps), cast


def proof(student, cast):
    """Better than the mean of ten architectures drawn within the same limit, each taught as the winner was. Beside it, what
    costs nothing: taking the largest. Where size says most, as in this space, the score mostly does not beat it."""
    archs, reached = cast.drawn()
    taught = read(cast.actors["teacher"], *cast.probe, 16)
    scores = [alike(taught, read(cast.space.build(arch), *cast.probe, 16)) for arch in archs]
    return Proof(cast.accuracy(student), beats=fmean(reached), unit="accuracy", baseline="an architecture drawn at random",
                 also={"the largest within the limit": cast.accuracy(cast.largest()), "Spearman of the score": cast.ranks(scores),
                       "Spearman of the parameters": cast.ranks(map(cast.space.cost, archs))})
