"""DINO: Emerging Properties in Self-Supervised Vision Transformers

Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin — ICCV 2021 — https://arxiv.org/abs/2104.14294

    teacher   running mean of the student's own weights
    reads     scores against prototypes
    compares  cross-entropy across views; the teacher's scores are centred and sharpened
    views     two large crops, seen by both, and several small ones, seen by the student
    data      images; labels are not used
    learns    student weights, from nothing; the teacher's are returned
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.utils.data import Dataset

from stillroom.arenas.neighbours import neighbours
from stillroom.batches import whole
from stillroom.measure import Proof
from stillroom.parts import optim, views
from stillroom.parts.heads import PrototypeHead, headless
from stillroom.parts.losses.contrast import cross_view
from stillroom.parts.schedules import cosine
from stillroom.parts.teachers import Ema
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class DINO(Recipe):
    prototypes: int = 65_536    # K, output width of the head
    hidden: int = 2048          # width of the head's two hidden layers
    bottleneck: int = 256       # width of the head before its prototypes
    small: int = 8              # small crops per image
    large_size: int = 224       # side of the large crops, in pixels
    small_size: int = 96        # side of the small crops, in pixels
    border: float = 0.4         # share of the image's area that parts small crops from large ones
    least: float = 0.05         # smallest share of the image's area in a small crop
    flip: float = 0.5           # probability of a mirrored crop
    colour: float = 1.0         # strength of jitter, greying, blur and solarisation; 0 for none
    soft: float = 0.1           # student temperature, τ_s
    sharp: float = 0.04         # teacher temperature at the start, τ_t
    sharp_end: float = 0.07     # teacher temperature after its rise
    rise: float = 0.3           # share of the loop in which the teacher temperature rises
    still: float = 0.01         # share of the loop in which the prototypes do not learn: the first epoch
    momentum: float = 0.996     # of the teacher, λ; cosine to 1
    centre: float = 0.9         # momentum of the running mean of the teacher's scores, m
    lr: float = 2e-3            # of AdamW, 5e-4 for every 256 images; rises over a tenth of the loop, then cosine to 1e-6
    decay: float = 0.04         # weight decay at the start
    decay_end: float = 0.4      # weight decay at the end, by a cosine
    clip: float = 3.0           # largest norm of the gradient
    batch: int = 1024           # images per step
    steps: int = 125_000        # updates: a hundred passes over ImageNet

    def distill(self, run: Run, student: Module, data: Dataset) -> Module:
        body, width = headless(student, whole(data, 2)[0].to(run.device))
        student = nn.Sequential(body, head := PrototypeHead(width, self.prototypes, self.hidden, self.bottleneck))
        teacher = Ema(student)
        centre = torch.zeros(self.prototypes, device=run.device)
        opt = optim.adamw(student, lr=cosine(self.lr, 1e-6, warmup=0.1), decay=cosine(self.decay, self.decay_end), clip=self.clip)
        run.keep(student=student, teacher=teacher, centre=centre, opt=opt)

        for x, _ in run.loop(data, batch=self.batch, steps=self.steps, whole=True):
            large = self.look(views.crops(x, 2, (self.border, 1.0), size=self.large_size))             # [2, batch, c, h, w]
            small = self.look(views.crops(x, self.small, (self.least, self.border), size=self.small_size))
            sharp = self.sharp + (self.sharp_end - self.sharp) * min(1.0, run.progress / self.rise)
            taught = teacher(large.flatten(0, 1))                                                       # [2·batch, k]
            target = ((taught - centre) / sharp).softmax(-1).unflatten(0, (2, -1))
            feature = torch.cat([body(large.flatten(0, 1)), body(small.flatten(0, 1))])
            guess = head(feature, learn=run.progress >= self.still).unflatten(0, (2 + self.small, -1)) / self.soft
            if run.update(opt, dino=cross_view(guess, target)):
                teacher.follow(student, cosine(self.momentum, 1.0)(run.progress))
                centre.lerp_(run.mean(taught.float().mean(0)), 1 - self.centre)

        return teacher.model[0]

    def look(self, x: Tensor) -> Tensor:
        """Flip and colour of BYOL, for every crop anew."""
        x = views.jitter(views.flip(x, self.flip), *(self.colour * share for share in (0.4, 0.4, 0.2, 0.1)), p=0.8)
        return views.solarise(views.blur(views.grey(x, 0.2 * self.colour), 0.5 * self.colour), 0.2 * self.colour)


def trial(seed=0):
    """Handwritten digits without labels; settings chosen on validation images of seeds 10 to 12."""
    return DINO(prototypes=256, hidden=128, bottleneck=32, small=2, large_size=8, small_size=8, border=0.8, least=0.5, flip=0.0,
                colour=0.0, momentum=0.96, lr=3e-3, batch=64, steps=400), neighbours(seed)


def proof(student, cast):
    """The twenty nearest of fifty labelled images name more test digits by its features than by those it began with."""
    also = {"the pixels themselves": cast.neighbours(cast.pixels), "linear probe": cast.probe(student),
            "linear probe, untrained": cast.probe(cast.untrained), "linear probe, pixels": cast.probe(cast.pixels)}
    return Proof(cast.neighbours(student), beats=cast.neighbours(cast.untrained), unit="accuracy of 20 neighbours",
                 baseline="the same network, untrained", also=also)
