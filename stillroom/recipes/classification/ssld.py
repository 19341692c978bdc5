"""SSLD: Beyond Self-Supervision: A Simple Yet Effective Network Distillation Alternative to Improve Backbones

Cui, Guo, Du, He, Li, Wu, Liu, Wen, Huang, Hu, Yu, Ding, Ma — arXiv 2021 — https://arxiv.org/abs/2103.05959

    teacher   frozen network; its batch norms may take the statistics of the batch
    reads     logits
    compares  the two distributions, in both directions; no label is ever read
    views     one, shared
    data      all images, labelled or not, and those of a further pool of which the teacher is surest for each class
    learns    student weights
    stages    all of it, long; then the original images alone, at a hundredth of the rate
"""

from dataclasses import dataclass

from torch.nn import Module
from torch.utils.data import Dataset

from stillroom import arenas
from stillroom.errors import one_of
from stillroom.measure import Proof
from stillroom.parts import optim
from stillroom.parts.losses.logits import js, soft_cross_entropy, symmetric_kl
from stillroom.parts.pool import images, select
from stillroom.parts.schedules import cosine
from stillroom.parts.teachers import Batched, Frozen
from stillroom.recipe import Recipe
from stillroom.run import Run

COMPARE = {"sym_kl": symmetric_kl, "js": js, "ce": soft_cross_entropy}


@dataclass(frozen=True, kw_only=True)
class SSLD(Recipe):
    compares: str = "sym_kl"      # "sym_kl" as released in 2021, "js" as the paper's text, "ce" as the later configurations
    teacher_bn: str = "eval"      # the teacher's batch norms: "eval", or "batch" for the statistics of each batch
    per_class: int = 4000         # images taken from the pool for each class, k
    alike: float = 0.98           # correlation from which an image of the pool is a near-duplicate of one to avoid
    lr: float = 0.4               # of SGD with momentum 0.9, cosine to 0; ResNet50-D: batch 1024
    lr_finetune: float = 0.004    # the same, second stage
    warmup: float = 0.014         # share of each stage in which the rate rises: 5 of 360 epochs
    decay: float = 7e-5           # weight decay; 1e-5 to 3e-5 for small networks
    batch: int = 1024             # samples per step
    steps: int = 1_800_000        # updates: 360 epochs of 5 million images
    steps_finetune: int = 75_000  # updates of the second stage: 60 epochs of 1.28 million

    def distill(self, run: Run, student: Module, teacher: Module, data: Dataset,
                pool: Dataset | None = None, avoid: Dataset | None = None) -> Module:
        """`pool`: further images without labels; `avoid`: images that must not come in by it, such as the validation split."""
        distance, sure = one_of(COMPARE, self.compares), Frozen(teacher)
        teacher = one_of({"eval": Frozen, "batch": Batched}, self.teacher_bn)(teacher)
        everything = images(data) if pool is None else images(data, select(sure, pool, self.per_class, avoid, self.alike))
        opt = optim.sgd(student, lr=cosine(self.lr, warmup=self.warmup), decay=self.decay)
        run.keep(student=student, opt=opt)

        for (x,) in run.loop(everything, batch=self.batch, steps=self.steps):
            run.update(opt, distance=distance(student(x), teacher(x)))

        opt = optim.sgd(student, lr=cosine(self.lr_finetune, warmup=self.warmup), decay=self.decay)
        run.keep(opt_finetune=opt)

        for (x,) in run.loop(images(data), batch=self.batch, steps=self.steps_finetune, name="finetune"):
            run.update(opt, distance=distance(student(x), teacher(x)))

        return student


def trial(seed=0):
    """Handwritten digits: 1,197 images of which SSLD sees no label; the baseline has fifty labels."""
    return SSLD(lr=0.05, lr_finetune=0.0005, batch=64, steps=540, steps_finetune=60), arenas.digits("few", seed)


def proof(student, cast):
    """Without a label better than the same student taught by fifty of them; plain KD, which reads both, is beside it."""
    return Proof(cast.accuracy(student), beats=cast.accuracy(cast.alone()), unit="accuracy",
                 also={"plain KD": cast.accuracy(cast.kd())})
