"""LightHuBERT: Lightweight and Configurable Speech Representation Learning with Once-for-All Hidden-Unit BERT

Wang, Bai, Ao, Zhou, Xiong, Wei, Zhang, Ko, Li — Interspeech 2022 — https://arxiv.org/abs/2203.15610

    teacher   frozen HuBERT
    reads     outputs of its last blocks, each frame normalised; their mean
    adapter   linear layer without bias on the student's last frames, of which a slice computes, too
    compares  squared error of the frames that are masked for the student
    views     one clip; spans of frames are masked for the student, none for the teacher
    data      clips [samples], of one length, or filled with zeros to one and their lengths third; no label is read
    learns    a supernet, of which every slice is a network, and the linear layer
    stages    the whole supernet; random slices; a search for the best slice within a budget, which learns nothing more
    note      reconstruction: the loss and the normalisation of targets are not among what was released
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset

from stillroom.arenas.spoken import spoken
from stillroom.batches import whole
from stillroom.errors import Refused
from stillroom.measure import Proof
from stillroom.measure.cost import resting
from stillroom.models.hubert import Subnets, sliced
from stillroom.parts import optim, views
from stillroom.parts.elastic import Linear
from stillroom.parts.evolution import child
from stillroom.parts.schedules import linear
from stillroom.parts.taps import Tap
from stillroom.parts.teachers import Frozen
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class LightHuBERT(Recipe):
    dims: tuple[int, ...] = (512, 640, 768)  # widths that a slice may have
    heads: tuple[int, ...] = (8, 10, 12)     # numbers of heads that each block of it may have
    ratios: tuple[float, ...] = (3.5, 4.0)   # of each block's hidden units to the width
    depths: tuple[int, ...] = (12,)          # numbers of blocks
    layers: int = 8            # last blocks of the teacher that are read, K
    mask: float = 0.65         # share of frames masked, were no two spans to overlap
    span: int = 10             # frames of a span
    lr: float = 5e-4           # of AdamW in both stages, straight to 0
    warmup: float = 0.08       # share of each stage in which the rate rises
    decay: float = 0.01        # weight decay
    batch: int = 224           # clips per step: 2,800 s of speech
    steps_whole: int = 400_000  # updates of the whole supernet
    steps: int = 400_000       # updates of random slices
    budget: int = 0            # most parameters of the slice that is looked for; 0: any
    population: int = 50       # slices alive in the search
    tournament: int = 10       # of them compared for a parent
    probe: int = 256           # clips that a slice is judged by
    steps_search: int = 0      # slices judged; 0: the supernet itself is returned

    def distill(self, run: Run, student: Module, teacher: Module, data: Dataset, valid: Dataset | None = None) -> Module:
        """`student`: a `models.hubert.Hubert`; `teacher`: another or a transformers.HubertModel, with as many frames a second;
        `valid`: clips by which slices are judged, some of `data` when left out. Returns the supernet, or the best slice."""
        student = sliced(student)
        space = Subnets(student, self.dims, self.heads, self.ratios, self.depths)
        blocks = [name for name, _ in teacher.named_modules() if name.rpartition(".")[0].endswith("encoder.layers")]
        tap = Tap(Frozen(teacher), *blocks[-self.layers :])
        asked, there = views.heard(*run.place(whole(data if valid is None else valid, self.probe)))
        seen, frames = target(tap, asked, **there), student.frames(asked.shape[1])
        if seen.shape[1] != frames:
            raise Refused(f"the teacher gives {seen.shape[1]} frames of a clip, the student {frames}", "equal strides")
        head = Linear(student.dim, seen.shape[2], bias=False)
        run.keep(student=student, head=head)

        for name, steps in (("whole", self.steps_whole), ("slices", self.steps)):
            opt = optim.adamw(student, head, lr=linear(self.lr, warmup=self.warmup), decay=self.decay, betas=(0.9, 0.98))
            run.keep(**{f"opt_{name}": opt})
            for clips in run.loop(data, batch=self.batch, steps=steps, name=name, whole=True):
                x, own = views.heard(*clips)
                masked = views.spans(len(x), student.counts(x, **own), self.mask, self.span).to(run.device)
                shape = student.shape if name == "whole" else space.random()
                run.update(opt, masked=error(head(student(x, shape, masked, **own)), target(tap, x, **own), masked))

        if not self.steps_search:
            return student
        run.keep(scored=(scored := []))                      # a score and a shape each, in the order of birth
        masked = views.spans(len(asked), student.counts(asked, **there), self.mask, self.span).to(run.device)
        for _ in run.loop(steps=self.steps_search, name="search"):
            shape = child(space, scored, self.population, self.tournament, self.budget)
            with resting(student):
                scored.append((-error(head(student(asked, shape, masked, **there)), seen, masked).item(), shape))
            run.log(score=scored[-1][0])
        return student.cut(max(scored, key=lambda one: one[0])[1])


def target(tap: Tap, x: Tensor, **there: Tensor) -> Tensor:
    """Mean of the blocks that are read, each frame with mean 0 and variance 1, [batch, frames, dim]."""
    return torch.stack([F.layer_norm(state, state.shape[-1:]) for state in tap(x, **there)[1]]).mean(0)


def error(said: Tensor, seen: Tensor, masked: Tensor) -> Tensor:
    """Σ_masked ‖said − seen‖² / (frames masked · dim)."""
    return F.mse_loss(said[masked], seen[masked])


def trial(seed=0):
    """Spoken digits without labels; the teacher, which knows them, lends its convolutions. Settings by the validation takes."""
    return LightHuBERT(dims=(8, 16, 32), heads=(2, 4), ratios=(2.0, 3.0), depths=(2,), layers=1, mask=0.3, span=1, lr=8e-3,
                       batch=16, steps_whole=20, steps=260), spoken(seed)


def proof(supernet, cast):
    """Three of its slices tell more of the digits than the same of a supernet of which only the whole was taught, or before any
    step. Beside it: the smallest of the three taught by itself, for as many steps as all slices had together."""
    smallest, whole, fresh = cast.shapes[0], cast.slices(cast.whole()), cast.slices(cast.fresh())
    return Proof(cast.slices(supernet), beats=max(whole, fresh), unit="probe accuracy",
                 baseline="the same slices where only the whole was taught, or before any step, whichever is better",
                 also={"slices, only the whole taught": whole, "slices before any step": fresh, "whole": cast.reads(supernet),
                       "smallest slice": cast.reads(supernet.cut(smallest)), "teacher": cast.reads(cast.teacher()),
                       "smallest, alone": cast.reads(cast.alone(smallest))})
