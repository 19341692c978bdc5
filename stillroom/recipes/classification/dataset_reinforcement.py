"""DR: Reinforce Data, Multiply Impact: Improved Model Accuracy and Robustness with Dataset Reinforcement

Faghri, Pouransari, Mehta, Farajtabar, Farhadi, Rastegari, Tuzel — ICCV 2023 — https://arxiv.org/abs/2303.08983

    teacher   frozen networks that speak as one, the mean of their probabilities; asked once about many views of every image
    reads     logits
    compares  KL from the stored probabilities; no label, but for one image in a hundred that is learnt from its label alone
    views     stored: random crops, RandAugment, erasing, mixing with another image
    data      labels optional: an image without one learns from the teachers alone
    learns    student weights, at the cost of a step without teacher
    stages    the data are reinforced; then students are trained on them, any number
"""

from dataclasses import dataclass
from functools import lru_cache, partial

import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset

from stillroom._compat import package
from stillroom.arenas.ensemble import reinforced
from stillroom.batches import tagged
from stillroom.measure import Proof
from stillroom.parts import optim, views
from stillroom.parts.schedules import cosine
from stillroom.parts.teachers import Ensemble
from stillroom.recipe import Recipe
from stillroom.run import Run
from stillroom.store import Views
from stillroom.store.regions import Mixed, Several, asked, crop, erase


@dataclass(frozen=True, kw_only=True)
class DatasetReinforcement(Recipe):
    samples: int = 400        # stored views of every image, K; 800 for CIFAR-100, 8000 for Flowers-102
    codec: str = "top10"      # how the teachers' answers are kept: ten likeliest classes, the rest spread evenly
    raw: float = 0.01         # chance that an image comes in a new view, with its label
    least: float = 0.08       # smallest share of the image in a crop
    flip: float = 0.5         # chance that a view is mirrored
    ops: int = 2              # operations of RandAugment on a view (torchvision's); 0: none
    magnitude: int = 9        # how strong they are, of 30
    erase: float = 0.25       # chance that a box of a view is erased
    mixup: float = 0.0        # chance that a view is mixed with another image, λ even; 0.5 in the variant M*
    cutmix: float = 0.0       # chance that a box of a view comes from another image; 0.5 in the variant M*
    lr: float = 0.4           # of SGD with momentum 0.9, cosine to 0
    warmup: float = 0.033     # share of the training in which the rate rises: 5 of 150 epochs
    decay: float = 1e-4       # weight decay
    batch: int = 1024         # images per step
    steps: int = 187_500      # updates: 150 epochs of 1.28 million images

    def distill(self, run: Run, student: Module, teacher: Module, data: Dataset, others: list[Module] | None = None) -> Module:
        """`others`: further teachers. `data` may be `store.Views`, when `teacher` is what `store.write` stored of them."""
        seen, usual = self.views(data, run.seed), partial(crop, scale=(self.least, 1.0), flip=self.flip)
        told = asked(run.folder and run.folder / "labels", Ensemble([teacher, *others]) if others else teacher, seen, self.codec,
                     run.device)
        opt = optim.sgd(student, lr=cosine(self.lr, warmup=self.warmup), decay=self.decay)
        run.keep(student=student, opt=opt)

        for x, y, at in run.loop(Several(seen, 1, raw=self.raw, usual=usual), batch=self.batch, steps=self.steps):
            x, at = x.squeeze(1), at.squeeze(1)
            logits = student(x)                                                   # [batch, classes]
            target = views.soft_labels(y, logits.shape[1])                        # zeros where there is no label
            stored = at >= 0
            if stored.any():
                target[stored] = told(tagged(x[stored], at[stored].cpu())).softmax(-1)
            run.update(opt, soft=F.kl_div(logits.log_softmax(-1), target, reduction="batchmean"))

        return student

    def views(self, data: Dataset, seed: int) -> Views | Mixed:
        if isinstance(data, Views | Mixed):
            return data
        look = partial(reinforce, least=self.least, flip=self.flip, ops=self.ops, magnitude=self.magnitude, rub=self.erase)
        seen = Views(data, look, self.samples, seed)
        return Mixed(seen, self.mixup, self.cutmix) if self.mixup or self.cutmix else seen


def reinforce(x: Tensor, least: float, flip: float, ops: int, magnitude: int, rub: float) -> Tensor:
    """One view of an image [channels, height, width]."""
    x = crop(x, (least, 1.0), flip=flip)
    x = operations(ops, magnitude)(x) if ops else x
    return erase(x, rub)


@lru_cache
def operations(ops: int, magnitude: int) -> Module:
    package("torchvision")
    from torchvision.transforms.v2 import RandAugment

    return RandAugment(ops, magnitude)


def trial(seed=0):
    """Handwritten digits, two labels in five wrong, ten views of each, two teachers; settings chosen on seeds 10 to 12."""
    method = DatasetReinforcement(samples=10, codec="top5", least=0.6, flip=0.0, ops=0, lr=0.1, batch=64, steps=400)
    return method, reinforced(seed)


def proof(student, cast):
    """Better than the same student taught by the labels, on such views; live distillation on new views is beside it."""
    return Proof(cast.accuracy(student), beats=cast.accuracy(cast.labels()), unit="accuracy", baseline="labels, same views",
                 also={"live teachers, new views": cast.accuracy(cast.live())})
