"""KD-pruned: Distilling the Knowledge in Data Pruning

Ben-Baruch, Botach, Kviatkovsky, Aggarwal, Medioni — arXiv 2024 — https://arxiv.org/abs/2403.07854

    teacher   frozen network, trained on all of the data; best no larger than the student where little is kept
    reads     logits
    compares  KL of softened probabilities, beside the labels
    views     one, shared
    data      labelled, rightly or wrongly; a part of it is kept: drawn by chance, or the highest of a score
    weights   the less is kept, the more the teacher weighs
    learns    student weights
    stages    scores, by nets of the student's kind that learn a little; the choice; distillation on what is kept
    note      reconstruction: the paper gives no rule for the teacher's weight, and ours is 1 − f/2
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset, Subset

from stillroom.arenas.pruned import pruned
from stillroom.batches import ids, targets, whole
from stillroom.errors import Refused, nearest
from stillroom.measure import Proof, answers
from stillroom.parts import losses, optim, pruning
from stillroom.parts.flat import fresh
from stillroom.parts.heads import headless
from stillroom.parts.schedules import cosine
from stillroom.parts.teachers import Frozen
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class DataPruningKD(Recipe):
    share: float = 0.5         # of the samples that is kept, f
    score: str = "random"      # the highest are kept: random, el2n, grand, margin, forgetting, moderate, herding
    even: bool = False         # every class keeps the same share
    nets: int = 10             # that the scores are means of
    alpha: float = -1.0        # share of the teacher in the loss, α; below 0: 1 − f/2
    temperature: float = 4.0   # softens teacher and student alike, τ
    shrink: bool = True        # less data, fewer updates: as many epochs; otherwise as many updates
    lr: float = 0.1            # of SGD with momentum 0.9, cosine to 0
    decay: float = 5e-4        # weight decay
    batch: int = 128           # samples per step
    steps: int = 78_000        # updates on all of the data: 200 epochs of 50,000 images
    steps_score: int = 7_800   # updates of each of the scores' nets: 20 epochs

    def distill(self, run: Run, student: Module, teacher: Module, data: Dataset) -> Module:
        teacher, scores = Frozen(teacher), self.scores(run, student, data)            # [samples]
        kept = pruning.keep(scores, self.share, targets(data) if self.even else None)
        alpha = self.alpha if self.alpha >= 0 else 1 - self.share / 2
        opt = optim.sgd(student, lr=cosine(self.lr), decay=self.decay)
        run.keep(student=student, opt=opt)

        updates = max(1, round(self.steps * self.share)) if self.shrink else self.steps
        for x, y in run.loop(Subset(data, kept.tolist()), batch=self.batch, steps=updates):
            logits = student(x)                                                       # [batch, classes]
            soft = losses.kl(logits, teacher(x), self.temperature)
            run.update(opt, soft=alpha * soft, hard=(1 - alpha) * losses.labels(logits, y))

        return student

    def scores(self, run: Run, student: Module, data: Dataset) -> Tensor:
        """Of every sample, [samples], by nets that begin anew and learn from the labels of all of them."""
        if self.score not in (known := ("random", "forgetting", *pruning.SCORES)):
            raise Refused(f"no score is called {self.score!r}", nearest(self.score, known))
        if self.score == "random":
            return torch.rand(len(data))
        told = []
        place = torch.empty(int(ids(data).max()) + 1, dtype=torch.long)
        place[ids(data)] = torch.arange(len(data))                                    # from a sample's number to its place
        for i in range(self.nets):
            net, seen = fresh(copy.deepcopy(student)), pruning.Forgetting(len(data))
            opt = optim.sgd(net, lr=cosine(self.lr), decay=self.decay)
            run.keep(**{f"net{i}": net, f"opt{i}": opt}, **({f"seen{i}": seen} if self.score == "forgetting" else {}))
            for x, y in run.loop(data, batch=self.batch, steps=self.steps_score, name=f"score{i}"):
                logits = net(x)
                if self.score == "forgetting":
                    seen.see(place[x.sample_ids], logits.argmax(-1) == y)
                run.update(opt, labels=losses.labels(logits, y))
            told.append(seen.count.cpu() if self.score == "forgetting" else said(net, data))
        if self.score == "forgetting":
            return torch.stack(told).mean(0)
        p, features = (torch.stack(parts) for parts in zip(*told, strict=True))       # [nets, samples, classes], […, width]
        return pruning.SCORES[self.score](p, features, targets(data))


def said(net: Module, data: Dataset) -> tuple[Tensor, Tensor]:
    """Probabilities [samples, classes] and what the last layer reads [samples, width], on the CPU."""
    body = headless(copy.deepcopy(net), whole(data, 2)[0].to(next(net.parameters()).device))[0]
    return answers(net, data)[0].softmax(-1), answers(body, data)[0]


def trial(seed=0):
    """Handwritten digits, one label in five wrong; a tenth is kept, by chance."""
    return DataPruningKD(share=0.1, shrink=False, nets=3, batch=64, steps=300, steps_score=60), pruned(seed)


def proof(student, cast):
    """Better than the same student taught on the same tenth by its labels; other scores and weights are beside it."""
    also = {"random, α = ½": {"alpha": 0.5}, "random, α = 1": {"alpha": 1.0}, "highest el2n": {"score": "el2n"},
            "highest el2n, labels": {"score": "el2n", "alpha": 0.0}, "all samples, labels": {"share": 1.0, "alpha": 0.0}}
    also = {who: cast.accuracy(cast.other(**fields)) for who, fields in also.items()}
    alone = cast.accuracy(cast.other(alpha=0.0))
    return Proof(cast.accuracy(student), beats=alone, unit="accuracy", baseline="labels, same tenth", also=also)
