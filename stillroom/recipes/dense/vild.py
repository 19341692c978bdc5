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
    note      reconstruction: ViLD-image is scored without objectness
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset, TensorDataset

from stillroom.arenas.tinted import tinted
from stillroom.errors import Refused, nearest
from stillroom.measure import Proof
from stillroom.measure.cost import resting
from stillroom.measure.detection import Boxes, gathered, zoomed
from stillroom.parts import optim
from stillroom.parts.regions import apart, crop_embeddings, ensemble
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
    lr: float = 0.32                 # of SGD with momentum 0.9, cosine to 0
    clip: float = 10.0               # bound on the gradient's norm
    decay: float = 4e-5              # weight decay
    batch: int = 256                 # images per step
    steps_propose: int = 20_000      # updates of the network that proposes
    steps_embed: int = 1_000_000     # batches of images whose proposals are embedded, at most all
    steps: int = 180_000             # updates of the detector

    def distill(self, run: Run, student: Module, tower: Module, texts: Tensor, data: Dataset,
                images: Dataset | None = None) -> Module:
        """`tower`: crops [n, 3, side, side] → embeddings [n, dim]; `texts`: [base classes, dim]; data: (image, `Boxes`), with
        masks if the student has a head for them; `images`: those whose proposals are embedded, data if none, their boxes unread."""
        if WAYS.get(self.way) != len(student.embeds):
            raise Refused(f"way {self.way!r} with a detector of {len(student.embeds)} heads",
                          f"{WAYS[self.way]} heads" if self.way in WAYS else nearest(self.way, WAYS))
        tower, texts, proposer = Frozen(tower), F.normalize(texts, dim=1), copy.deepcopy(student)
        opt = optim.sgd(proposer.backbone, proposer.rpn, lr=cosine(self.lr), decay=self.decay, clip=self.clip)
        run.keep(proposer=proposer, opt_propose=opt)
        order, seen = TensorDataset(torch.arange(len(data))), data if images is None else images

        for (index,) in run.loop(order, batch=self.batch, steps=self.steps_propose, name="propose", whole=True):
            run.update(opt, **proposer.propose(*zoomed(self.jitter, *gathered(data, index, run.device)))[2])

        run.keep(cached=(cached := []))
        parts = torch.arange(len(seen)).split(self.batch) if self.way != "text" else ()
        for n in run.loop(steps=min(self.steps_embed, len(parts)), name="embed"):
            x, _ = gathered(seen, parts[n], run.device)
            with resting(proposer):
                found = [boxes[: self.proposals] for boxes in proposer.propose(x)[1]]
            cached += [(boxes, crop_embeddings(tower, image, boxes, self.side)) for image, boxes in zip(x, found, strict=True)]

        opt = optim.sgd(student, lr=cosine(self.lr), decay=self.decay, clip=self.clip)
        none = texts.new_zeros(0, 4), texts.new_zeros(0, texts.shape[1])     # of an image whose proposals were not embedded
        run.keep(student=student, opt=opt)
        for (index,) in run.loop(order, batch=self.batch, steps=self.steps, name="detect", whole=True):
            at = index if images is None else torch.randint(len(images), index.shape)
            kept = [Boxes(*cached[i] if i < len(cached) else none).to(run.device) for i in at.tolist()]
            if images is None:
                x, truth, kept = zoomed(self.jitter, *gathered(data, index, run.device), kept)
            else:
                x, truth = zoomed(self.jitter, *gathered(data, index, run.device))
            maps, proposals, terms = student.propose(x, truth)
            region, label, placed = student.place(maps, proposals, truth, x.shape[2:], self.regions, self.positive)
            terms |= placed
            if self.way != "image":
                terms["names"] = F.cross_entropy(student.named(region, texts, self.temperature), label)
            if self.way != "text":
                if images is not None:
                    x, kept = zoomed(self.jitter, gathered(images, at, run.device)[0], kept)
                    maps = student.backbone(x)
                said = student.regions(maps, [k.boxes for k in kept], x.shape[2:])[0][-1]
                terms["image"] = self.image * apart(said, torch.cat([k.labels for k in kept]))
            run.update(opt, **terms)

        return student


def scores(student: Module, regions: list[Tensor], texts: Tensor, base: Tensor, way: str, temperature: float = 0.01) -> Tensor:
    """Probabilities [regions, classes] of embeddings by each head; texts [classes, dim], base [classes]: which had boxes."""
    text, image = (student.named(r, texts, temperature) for r in (regions[0], regions[-1]))
    text, image = text.softmax(1)[:, 1:], image[:, 1:].softmax(1)        # which has learnt nothing of the background
    return image if way == "image" else ensemble(text, image, base) if way == "ensemble" else text


def trial(seed=0):
    """Coloured shapes; four of sixteen kinds have no box. Settings of seeds 10 and 11."""
    return ViLD(temperature=0.1, image=1.0, jitter=(1, 1), side=16, regions=32, lr=0.2, clip=2.0, batch=8, steps_propose=80,
                steps=250), tinted(seed)


def proof(student, cast):
    """It finds more of the novel classes than the same detector taught by names alone."""
    (base, novel), (base_text, novel_text) = cast.ap50(student, "ensemble"), cast.ap50(cast.other("text"), "text")
    return Proof(novel, beats=novel_text, unit="AP50 of novel classes", baseline="ViLD-text",
                 also={"base classes": base, "base classes, ViLD-text": base_text})
