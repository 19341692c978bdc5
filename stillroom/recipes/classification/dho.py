"""DHO: Simple Semi-supervised Knowledge Distillation from Vision-Language Models via Dual-Head Optimization

Kang, Lee, Jang, Hwang — arXiv 2025 — https://arxiv.org/abs/2505.07675

    teacher   any frozen source of logits; weak or strong, meant for a zero-shot vision-language model
    reads     logits
    adapter   two linear heads on one feature: one for the labels, one for the teacher
    compares  the labels with the first head; KL of softened probabilities with the second
    views     one, shared
    data      some labelled: a batch with labels and a batch without, at every step
    learns    student weights and both heads
    stages    after training, the two heads' probabilities are mixed: α to the first, the second at temperature β
"""

import copy
from dataclasses import dataclass

from torch.nn import Module
from torch.utils.data import Dataset

from stillroom import arenas
from stillroom.batches import joined, whole
from stillroom.measure import Proof
from stillroom.parts import losses, optim
from stillroom.parts.heads import TwoHeads, choose_mix
from stillroom.parts.pairs import pairs
from stillroom.parts.schedules import linear
from stillroom.parts.teachers import Frozen
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class DHO(Recipe):
    share: float = 0.5        # of the labels in the loss, λ; the teacher gets the rest
    temperature: float = 2.0  # softens teacher and second head in the loss, T
    alpha: float = 0.5        # share of the first head in the prediction, α
    beta: float = 0.5         # temperature of the second head in the prediction, β
    lr: float = 1e-3          # of AdamW, risen to in the first tenth, then straight to 0
    decay: float = 0.01       # weight decay
    batch: int = 64           # labelled samples per step, and as many unlabelled ones
    steps: int = 5_000        # updates: 200 epochs of 16 images for each of 100 classes

    def distill(self, run: Run, student: Module, teacher: Module, data: Dataset) -> Module:
        teacher = Frozen(teacher)
        both = TwoHeads(student, whole(data, 1)[0].to(run.device), self.alpha, self.beta)
        opt = optim.adamw(both, lr=linear(self.lr, warmup=0.1), decay=self.decay)
        run.keep(both=both, opt=opt)

        for x, y, x_u in run.loop(pairs(data), batch=self.batch, steps=self.steps):
            images = joined(x, x_u)                                               # [2·batch, …]
            to_labels, to_teacher = both.heads(images)                            # [2·batch, classes] each
            hard = losses.labels(to_labels[: len(x)], y)
            soft = 2 * losses.kl(to_teacher, teacher(images), self.temperature)   # mean over each half, summed
            run.update(opt, labels=self.share * hard, soft=(1 - self.share) * soft)

        return both


def trial(seed=0):
    """Handwritten digits, fifty labels, the rest unlabelled; a weak teacher, taught by thirty labels of other images."""
    return DHO(lr=0.01, steps=600), arenas.digits("weak", seed)


def proof(made, cast):
    """Better than one head that learns from labels and teacher alike, on as many samples; (α, β) from validation samples."""
    chosen = copy.deepcopy(made)
    choose_mix(chosen, cast.valid)
    return Proof(cast.accuracy(chosen), beats=cast.accuracy(cast.single()), unit="accuracy", baseline="a single head",
                 also={"α = β = ½": cast.accuracy(made), "the student alone": cast.accuracy(cast.alone()),
                       "teacher": cast.accuracy(cast.actors["teacher"])})
