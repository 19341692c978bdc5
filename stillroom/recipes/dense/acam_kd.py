"""ACAM-KD: Adaptive and Cooperative Attention Masking for Knowledge Distillation

Lan, Tian — ICCV 2025 — https://arxiv.org/abs/2503.06307

    teacher   frozen network that gives every pixel a class
    reads     feature maps of named layers, or the logit map
    adapter   1×1 convolution to the teacher's width; the teacher's map looks at the student's by attention
    compares  squared difference of the maps under M masks of channels and M of positions, over their mass
    views     one, shared
    data      images with masks; pixels without a class, and images without any, learn from the teacher alone
    weights   masks, which follow from both maps; their overlap is a loss, so that they stay different
    learns    student weights; adapters, attention and selectors of masks, which are dropped
    note      reconstruction: selectors' first values, the rate of SGD; not built: the task loss of detectors
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import Module
from torch.utils.data import Dataset

from stillroom.arenas.streets import streets
from stillroom.errors import Refused, nearest
from stillroom.measure import Proof
from stillroom.measure.cost import resting
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
    layers: tuple[str, ...] = ()    # the student's modules whose maps are compared; none: its output, the logit map
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
        if self.sees not in SEES:
            raise Refused(f"{self.sees!r} is none of {', '.join(SEES)}", nearest(self.sees, SEES))
        for name in self.inherit:
            student.get_submodule(name).load_state_dict(teacher.get_submodule(name).state_dict())
        teacher, theirs, x = Frozen(teacher), self.layers_teacher or self.layers, data[0][0][None].to(run.device)
        with resting(student):
            pairs = zip(maps(student, self.layers, x)[1], maps(teacher, theirs, x)[1], strict=True)
            levels = nn.ModuleList([Level(s.shape[1], t.shape[1], self.masks, self.keys) for s, t in pairs]).to(run.device)
        opt = optim.sgd(student, levels, lr=linear(self.lr), decay=self.decay, clip=self.clip)
        run.keep(student=student, levels=levels, opt=opt)

        for x, y in run.loop(data, batch=self.batch, steps=self.steps):
            logits, learnt = maps(student, self.layers, x)
            _, taught = maps(teacher, theirs, x)
            each = [level(s, t, self.sees, self.square_mask) for level, s, t in zip(levels, learnt, taught, strict=True)]
            channels, places, overlaps = map(sum, zip(*each, strict=True))
            run.update(opt, task=losses.labels(enlarged(logits, y), y), channels=self.alpha * channels,
                       places=self.alpha * places, overlap=self.diversity * overlaps)

        return student


def maps(model: Module, names: tuple[str, ...], x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The logit map of a segmenter, also of torchvision and transformers, and the maps of these layers, or itself without any."""
    out, found = Tap(model, *names)(x) if names else (model(x), None)
    logits = out.get("out", out.get("logits")) if isinstance(out, dict) else out
    if any(not isinstance(m, Tensor) or m.ndim != 4 for m in (logits, *(found or ()))):
        raise Refused("the model gives no map [batch, channels, height, width]", "give a segmenter, and layers that put out maps")
    return logits, found or [logits]


def trial(seed=0):
    """Street scenes, two of them with masks; the teacher is wider and has seen every mask. Settings of seeds 10 to 13."""
    return ACAMKD(layers=("head",), square_mask=False, alpha=0.5, keys=64, lr=0.1, clip=2.0, batch=8, steps=200), streets(seed)


def proof(student, cast):
    """Better than the same student taught by the labelled images alone. Beside it plain MSE, which does as well here, and masks
    inside the square, as printed, which shrink to nothing in spite of their mass."""
    others = {"plain MSE": cast.other(sees="nothing"), "masks inside the square": cast.other(square_mask=True)}
    return Proof(cast.miou(student), beats=cast.miou(cast.alone()), unit="mIoU",
                 also={name: cast.miou(net) for name, net in (others | {"teacher": cast.teacher}).items()})
