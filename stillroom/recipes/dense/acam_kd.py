"""ACAM-KD: Adaptive and Cooperative Attention Masking for Knowledge Distillation

Lan, Tian — ICCV 2025 — https://arxiv.org/abs/2503.06307

    teacher   frozen segmenter or detector
    reads     feature maps of named layers, every level of a pyramid; or a segmenter's logit map
    adapter   1×1 convolution to the teacher's width; the teacher's map looks at the student's by attention
    compares  squared difference of the maps under M masks of channels and M of positions, over their mass
    views     one, shared
    data      images with masks, of which pixels and whole images without a class learn from the teacher alone; or with boxes
    weights   masks, which follow from both maps; their overlap is a loss, so that they stay different
    learns    student weights; adapters, attention and selectors of masks, which are dropped
    note      reconstruction: selectors' first values, the rate of SGD; detectors are measured in benchmarks/detectors.py
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import Module
from torch.utils.data import Dataset

from stillroom.arenas.streets import streets
from stillroom.errors import Refused, nearest
from stillroom.measure import Proof
from stillroom.measure.cost import resting
from stillroom.measure.detection import Boxes
from stillroom.models.segmenter import enlarged
from stillroom.parts import losses, optim
from stillroom.parts.masks import Level
from stillroom.parts.schedules import linear
from stillroom.parts.taps import Tap
from stillroom.parts.teachers import Frozen
from stillroom.recipe import Recipe
from stillroom.run import Run

SEES = ("both", "reversed", "teacher", "nothing")


@dataclass(frozen=True, kw_only=True)
class ACAMKD(Recipe):
    layers: tuple[str, ...] = ()    # the student's modules whose maps are compared; none: the logit map, or a detector's backbone
    layers_teacher: tuple[str, ...] = ()  # the teacher's, one for each; none: those of the same names
    inherit: tuple[str, ...] = ()   # modules of neck and head that begin with the teacher's weights
    masks: int = 6                  # M, of channels and as many of positions, at every layer; 19 on Cityscapes
    sees: str = "both"              # masks follow from "both", "reversed" (the student asks), the "teacher", "nothing": plain MSE
    square_mask: bool = True        # (mask · difference)², as printed; False: mask · difference²
    alpha: float = 1.0              # α, weight of the comparison
    diversity: float = 1.0          # λ, weight of the overlap of masks
    keys: int = 4096                # positions that attention looks at, at most; a larger map is pooled
    lr: float = 0.02                # of SGD with momentum 0.9, straight to 0
    clip: float = 35.0              # bound on the gradient's norm
    decay: float = 1e-4             # weight decay
    batch: int = 16                 # images per step
    steps: int = 40_000             # updates

    def distill(self, run: Run, student: Module, teacher: Module, data: Dataset) -> Module:
        """`data`: (image, mask), or (image, `Boxes`) for detectors as torchvision's, with labels as these count them."""
        if self.sees not in SEES:
            raise Refused(f"{self.sees!r} is none of {', '.join(SEES)}", nearest(self.sees, SEES))
        for name in self.inherit:
            student.get_submodule(name).load_state_dict(teacher.get_submodule(name).state_dict())
        teacher, x, boxes = Frozen(teacher), data[0][0][None].to(run.device), isinstance(data[0][1], Boxes)
        layers = self.layers or ("backbone",) * boxes
        theirs = self.layers_teacher or layers
        with resting(student):
            learnt, taught = maps(student, layers, x)[1], maps(teacher, theirs, x)[1]
        if len(learnt) != len(taught):
            raise Refused(f"{len(learnt)} maps of the student, {len(taught)} of the teacher", "one for each in layers_teacher")
        widths = [(s.shape[1], t.shape[1]) for s, t in zip(learnt, taught, strict=True)]
        levels = nn.ModuleList([Level(*both, self.masks, self.keys) for both in widths]).to(run.device)
        opt = optim.sgd(student, levels, lr=linear(self.lr), decay=self.decay, clip=self.clip)
        run.keep(student=student, levels=levels, opt=opt)

        for x, y in run.loop(data, batch=self.batch, steps=self.steps, whole=boxes):
            said, learnt = maps(student, layers, x, *([[on.known() for on in y]] if boxes else []))
            _, taught = maps(teacher, theirs, x)
            each = [level(s, t, self.sees, self.square_mask) for level, s, t in zip(levels, learnt, taught, strict=True)]
            channels, places, overlaps = map(sum, zip(*each, strict=True))
            run.update(opt, task=task(said, y), channels=self.alpha * channels,
                       places=self.alpha * places, overlap=self.diversity * overlaps)

        return student


def task(said: Tensor | dict[str, Tensor], y: Tensor | list[Boxes]) -> Tensor:
    """The student's own loss: cross-entropy of a logit map with masks, or the sum of those that a detector gives of boxes."""
    return sum(said.values()) if isinstance(said, dict) else losses.labels(enlarged(said, y), y)


def maps(model: Module, names: tuple[str, ...], x: Tensor, *shown: list) -> tuple[Any, list[Tensor]]:
    """What a model gives of images, and of the boxes it is shown, and the maps of these layers, all that a layer gives by name;
    or its logit map without any. Of segmenters, also of torchvision and transformers, it gives that in any case."""
    said, found = Tap(model, *names)(x, *shown) if names else (model(x), [])
    said = said.get("out", said.get("logits", said)) if isinstance(said, dict) else said
    found = [m for put in found for m in (put.values() if isinstance(put, dict) else [put])] or [said]
    if any(not isinstance(m, Tensor) or m.ndim != 4 for m in (*found, *([] if isinstance(said, dict | list) else [said]))):
        raise Refused("the model gives no map [batch, channels, height, width]",
                      "give a segmenter or a detector, and layers that put out maps")
    return said, found


def trial(seed=0):
    """Street scenes, two of them with masks; the teacher is wider and has seen every mask. Settings of seeds 10 to 13."""
    return ACAMKD(layers=("head",), square_mask=False, alpha=0.5, keys=64, lr=0.1, clip=2.0, batch=8, steps=200), streets(seed)


def proof(student, cast):
    """Better than the same student taught by the labelled images alone. Beside it plain MSE, which does as well here, and masks
    inside the square, as printed, which shrink to nothing in spite of their mass."""
    others = {"plain MSE": cast.other(sees="nothing"), "masks inside the square": cast.other(square_mask=True)}
    return Proof(cast.miou(student), beats=cast.miou(cast.alone()), unit="mIoU",
                 also={name: cast.miou(net) for name, net in (others | {"teacher": cast.teacher}).items()})
