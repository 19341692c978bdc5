"""ERNIE-Tiny: A Progressive Distillation Framework for Pretrained Transformer Compression

Su, Chen, Feng, Liu, Liu, Sun, Tian, Wu, Wang — arXiv 2021 — https://arxiv.org/abs/2106.02241

    teacher   frozen encoder of texts as it was pre-trained, then the same finetuned on the task
    reads     hidden states and attention maps of every layer, logits
    adapter   linear maps from the student's width to the teacher's, of the embedding and of the layers
    compares  squared error of states, KL of attention; at last KL of logits and cross-entropy with the labels, too
    views     one, shared; padding counts nowhere
    data      labelled; beside it a general corpus, whose labels are never read
    learns    student weights and the linear maps
    stages    general, general enhanced, task-adaptive, task-specific: from each to the next one thing of three changes, first the
              teacher, then the texts, then the loss; the optimiser begins anew, student and maps go on
    note      reconstruction: form of the attention's loss, weights, temperature
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.utils.data import Dataset

from stillroom.arenas.sentences import sentences
from stillroom.batches import to_device, whole
from stillroom.errors import Refused, nearest
from stillroom.measure import Proof
from stillroom.parts import losses, optim, taps
from stillroom.parts.losses.latent import attention_kl, attention_mse, hidden_mse, uniform
from stillroom.parts.schedules import linear
from stillroom.parts.teachers import Frozen
from stillroom.recipe import Recipe
from stillroom.run import Run

ATTENTION = {"kl": attention_kl, "mse": attention_mse}


@dataclass(frozen=True, kw_only=True)
class ErnieTiny(Recipe):
    attention: str = "kl"         # how maps of attention are compared: "kl" of each token's distribution, or "mse"
    temperature: float = 1.0      # of the logits, T
    per_layer: bool = False       # a linear map for each layer in place of one for all, W_h
    decay: float = 0.01           # weight decay
    warmup: float = 0.1           # share of each stage in which the rate rises; then it falls to 0
    lr: float = 6e-4              # of AdamW, both general stages
    batch: int = 256              # texts per step, both general stages
    steps: int = 500_000          # updates of general distillation, GD
    steps_enhanced: int = 100_000  # updates of general-enhanced distillation, GED
    lr_adaptive: float = 5e-5     # of AdamW, TAD
    lr_specific: float = 2e-5     # of AdamW, TSD
    batch_task: int = 32          # texts per step, both task stages
    steps_adaptive: int = 30_000  # updates of task-adaptive distillation, TAD
    steps_specific: int = 30_000  # updates of task-specific distillation, TSD

    def distill(self, run: Run, student: Module, teacher: Module, expert: Module, corpus: Dataset, data: Dataset) -> Module:
        """`teacher`: pre-trained; `expert`: the same finetuned. All are encoders that `taps.latents` reads, student and expert
        with a head. Inputs: ids [texts, tokens], 0 for padding, or dicts with an attention_mask. `corpus`: samples (x, −100)."""
        if self.attention not in ATTENTION:
            raise Refused(f"attention {self.attention!r} is unknown", nearest(self.attention, ATTENTION))
        learner, pretrained, tuned = map(taps.latents, (student, Frozen(teacher), Frozen(expert)))
        projections = self.fitted(learner, pretrained, tuned, to_device(whole(corpus, 2)[0], run.device)).to(run.device)
        run.keep(student=student, projections=projections)
        general, task = (corpus, self.batch), (data, self.batch_task)

        for name, guide, (texts, batch), steps, lr in (("general", pretrained, general, self.steps, self.lr),
                                                       ("enhanced", tuned, general, self.steps_enhanced, self.lr),
                                                       ("adaptive", tuned, task, self.steps_adaptive, self.lr_adaptive),
                                                       ("specific", tuned, task, self.steps_specific, self.lr_specific)):
            opt = optim.adamw(student, projections, lr=linear(lr, warmup=self.warmup), decay=self.decay)
            run.keep(**{f"opt_{name}": opt})
            for x, y in run.loop(texts, batch=batch, steps=steps, name=name):
                logits, *learnt = learner(x)
                answers, *taught = guide(x)
                terms = self.latent(learnt, taught, projections, real(x))
                if name == "specific":
                    terms |= {"soft": losses.kl(logits, answers, self.temperature), "hard": losses.labels(logits, y)}
                run.update(opt, **terms)
        return student

    def latent(self, learnt: list, taught: list, projections: nn.ModuleList, there: Tensor) -> dict[str, Tensor]:
        """The student's layer m beside the teacher's m·L_t/L_s: the sums over layers of both comparisons."""
        (states, maps), (states_t, maps_t), at = learnt, taught, uniform(len(learnt[1]), len(taught[1]))
        hidden = [hidden_mse(project(s), states_t[g], there) for s, g, project in zip(states, at, projections, strict=True)]
        attention = [ATTENTION[self.attention](maps[m], maps_t[g - 1], there) for m, g in enumerate(at[1:])]
        return {"hidden": torch.stack(hidden).sum(), "attention": torch.stack(attention).sum()}

    def fitted(self, learner, pretrained, tuned, x) -> nn.ModuleList:
        """New linear maps, the embedding's first; the teachers must be one architecture with two sets of weights."""
        with torch.no_grad():
            (_, own, _), (_, before, maps), (_, after, _) = learner(x), pretrained(x), tuned(x)
        if [s.shape for s in before] != [s.shape for s in after]:
            raise Refused(f"the teacher has {len(maps)} layers of width {before[0].shape[-1]}, the expert {len(after) - 1} of "
                          f"{after[0].shape[-1]}", "the expert is the teacher, finetuned on the task")
        if all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
            raise Refused("the expert holds what the teacher holds: it was not finetuned, or both are one network",
                          "finetune a copy of the teacher on the task, and give both")
        first, *layers = (nn.Linear(own[0].shape[-1], before[0].shape[-1], bias=False) for _ in uniform(len(own) - 1, len(maps)))
        return nn.ModuleList([first, *(layers if self.per_layer else layers[:1] * len(layers))])


def real(x) -> Tensor:
    """Which tokens are none of padding, [texts, tokens]."""
    return x["attention_mask"] != 0 if isinstance(x, dict) else x != 0


def trial(seed=0):
    """Thousands of texts without a label, three labels a class; the expert has seen every label of the task."""
    return ErnieTiny(lr=1e-2, lr_adaptive=1e-2, lr_specific=1e-2, batch=16, batch_task=16, steps=40, steps_enhanced=200,
                     steps_adaptive=20, steps_specific=100), sentences(seed)


def proof(student, cast):
    """Better than TSD alone, for as many steps. It is GED that brings it: GD by a teacher so little pre-trained costs more than
    it brings, as other ways to spend the same steps show."""
    alone = cast.staged(steps=0, steps_enhanced=0, steps_adaptive=0, steps_specific=360)
    ways = {"GD, TSD": dict(steps=260, steps_enhanced=0, steps_adaptive=0), "GED in the place of GD":
            dict(steps=0, steps_enhanced=240), "GD in the place of GED": dict(steps=240, steps_enhanced=0)}
    also = {way: cast.accuracy(cast.staged(**fields)) for way, fields in ways.items()}
    return Proof(cast.accuracy(student), beats=cast.accuracy(alone), unit="accuracy", baseline="TSD alone, as many steps",
                 also={**also, "the expert": cast.accuracy(cast.expert)})
