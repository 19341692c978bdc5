"""ViLD: Open-vocabulary Object Detection via Vision and Language Knowledge Distillation

Gu, Lin, Kuo, Cui — ICLR 2022 — https://arxiv.org/abs/2104.13921

    teacher   two frozen towers: embeddings of the class names, and of what lies in proposed boxes, both computed once
    reads     embeddings of unit length, of a crop and of the same with half as much again around it, summed
    compares  sum of absolute differences from the region's embedding; beside it, cosines with the names as the classifier
    views     one, at a scale drawn from .1 to 2, in a frame of one size; boxes proposed by a network that saw base classes alone
    data      labelled boxes, and masks if there are, of base classes; what else is on the images, novel classes too, has no box
    weights   where both heads speak: geometric means, 2/3 to the one that knows the class better
    learns    detector with boxes and masks that know no class; an embedding of the background; no text
    stages    the proposals, on the base classes; what is in them, kept; the detector
    note      reconstruction: ViLD-image is scored without objectness; images without boxes, for the crops alone, are ours
"""

import copy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset, TensorDataset

from stillroom.arenas.cells import cells
from stillroom.errors import Refused, nearest
from stillroom.measure import Proof
from stillroom.measure.cost import resting
from stillroom.measure.detection import Boxes, gathered, zoomed
from stillroom.parts import optim
from stillroom.parts.regions import apart, crop_embeddings
from stillroom.parts.schedules import cosine
from stillroom.parts.teachers import Frozen
from stillroom.recipe import Recipe
from stillroom.run import Run

WAYS = {"text": 1, "image": 1, "both": 1, "ensemble": 2}     # and the heads that each needs


@dataclass(frozen=True, kw_only=True)
class ViLD(Recipe):
    way: str = "ensemble"            # ViLD-"text", ViLD-"image", "both" losses on one head (ViLD), or on two: ViLD-"ensemble"
    temperature: float = 0.01        # τ, of the cosines
    image: float = 0.5               # w, weight of the distance from the crops' embeddings
    jitter: tuple[float, float] = (0.1, 2.0)     # scales of an image that is learnt from; 1, 1: as it is
    proposals: int = 300             # M, of an image, that are embedded, at most
    side: int = 224                  # of a crop, as the image tower wants it
    regions: int = 512               # sampled from the proposals of an image
    positive: float = 0.25           # share of regions that are on a box, at most
    lr: float = 0.32                 # of SGD with momentum 0.9; rises for a tenth of a loop, cosine to 0
    clip: float = 10.0               # bound on the gradient's norm
    decay: float = 4e-5              # weight decay
    batch: int = 256                 # images per step
    steps_propose: int = 20_000      # updates of the network that proposes
    steps_embed: int = 1_000_000     # batches of images whose proposals are embedded, at most all
    steps: int = 180_000             # updates of the detector

    def distill(self, run: Run, student: Module, tower: Module, texts: Tensor, data: Dataset,
                images: Dataset | None = None) -> Module:
        """`tower`: crops [n, 3, side, side] → embeddings [n, dim]; `texts`: [base classes, dim]; data: (image, `Boxes`), with
        masks if the student has a head for them; `images`: alike, of which no box is read, to embed what is proposed on them
        instead of on data."""
        if WAYS.get(self.way) != len(student.embeds):
            raise Refused(f"way {self.way!r} with a detector of {len(student.embeds)} heads",
                          f"{WAYS[self.way]} heads" if self.way in WAYS else nearest(self.way, WAYS))
        tower, texts, proposer = Frozen(tower), F.normalize(texts, dim=1), copy.deepcopy(student)
        opt = optim.sgd(proposer.backbone, proposer.rpn, lr=cosine(self.lr, warmup=0.1), decay=self.decay, clip=self.clip)
        run.keep(proposer=proposer, opt_propose=opt)
        order, seen, looks = TensorDataset(torch.arange(len(data))), data if images is None else images, self.way != "text"

        for (index,) in run.loop(order, batch=self.batch, steps=self.steps_propose * looks, name="propose", whole=True):
            run.update(opt, **proposer.propose(*zoomed(self.jitter, *gathered(data, index, run.device)))[2])

        run.keep(cached=(cached := []))
        parts = torch.arange(len(seen)).split(self.batch) if looks else ()
        for n in run.loop(steps=min(self.steps_embed, len(parts)), name="embed"):
            x, _ = gathered(seen, parts[n], run.device)
            with resting(proposer):
                found = [boxes[: self.proposals] for boxes in proposer.propose(x)[1]]
            cached += [(boxes, crop_embeddings(tower, image, boxes, self.side)) for image, boxes in zip(x, found, strict=True)]

        opt = optim.sgd(student, lr=cosine(self.lr, warmup=0.1), decay=self.decay, clip=self.clip)
        none = texts.new_zeros(0, 4), texts.new_zeros(0, texts.shape[1])     # of an image that was left out
        run.keep(student=student, opt=opt)
        for (index,) in run.loop(order, batch=self.batch, steps=self.steps, name="detect", whole=True):
            at = index if images is None else torch.randint(len(cached) or len(images), index.shape)
            kept = [Boxes(*cached[i] if i < len(cached) else none).to(run.device) for i in at.tolist()]
            x, truth, *there = zoomed(self.jitter, *gathered(data, index, run.device), *([kept] if images is None else []))
            maps, proposals, terms = student.propose(x, truth)
            region, label, placed = student.place(maps, proposals, truth, x.shape[2:], self.regions, self.positive)
            terms |= placed
            if self.way != "image":
                terms["names"] = F.cross_entropy(student.named(region, texts, self.temperature), label)
            if looks:
                if images is not None:
                    x, *there = zoomed(self.jitter, gathered(images, at, run.device)[0], kept)
                    maps = student.backbone(x)
                said = student.regions(maps, [k.boxes for k in there[0]], x.shape[2:])[0][-1]
                terms["image"] = self.image * apart(said, torch.cat([k.labels for k in there[0]]))
            run.update(opt, **terms)

        return student


def trial(seed=0):
    """Blood cells, white ones without boxes, where the data are; else coloured shapes. Settings of seed 11, validation images."""
    cast = cells(seed)
    method = ViLD(temperature=0.1, image=2.0, jitter=(0.5, 1.0), proposals=80, side=16, regions=32, lr=0.06, clip=1.0, batch=4,
                  steps_propose=120, steps=350)
    return (method if cast.real else replace(method, image=1.0, jitter=(1, 1), lr=0.2, clip=2.0, batch=8, steps=250)), cast


def proof(student, cast):
    """It finds more of the novel classes than the same detector taught by names alone, but little of the base classes; nor does
    that: after 1,000 steps (seed 11) it finds 16.9 of these and 7.9 of the novel. Proposals come from maps of their own here."""
    text = cast.other("text")
    (base, novel), (base_text, novel_text) = cast.ap50(student, "ensemble"), cast.ap50(text, "text")
    return Proof(novel, beats=novel_text, unit="AP50 of novel classes", baseline="ViLD-text",
                 also={"base classes": base, "base classes, ViLD-text": base_text, "novel objects proposed": cast.recall(student),
                       "novel objects proposed, ViLD-text": cast.recall(text)})
