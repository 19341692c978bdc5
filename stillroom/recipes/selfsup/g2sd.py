"""G2SD: Generic-to-Specific Distillation of Masked Autoencoders

Huang, Peng, Dong, Wei, Jiao, Ye — CVPR 2023 — https://arxiv.org/abs/2302.14771

    teacher   frozen masked autoencoder, then the same finetuned on the task
    reads     hidden state of the teacher's decoder after its fourth block, then its decision
    adapter   two-layer perceptron on the student's decoder; a second token with its own head
    compares  smooth L1 of all tokens with the normalised state, then cross-entropy with labels and decision
    views     one crop, the same patches hidden from both; then one crop, erased and mixed, seen by both
    data      labels optional
    learns    student encoder and decoder, then the encoder with two heads
    stages    generic, specific
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module
from torch.utils.data import Dataset

from stillroom.arenas.patches import patches
from stillroom.batches import whole
from stillroom.errors import Refused
from stillroom.measure import Proof
from stillroom.models.vit import MAE, TwoTokens, depths
from stillroom.parts import optim, views
from stillroom.parts.schedules import cosine
from stillroom.parts.teachers import Frozen
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class G2SD(Recipe):
    mask: float = 0.75            # share of patches that are hidden
    layers: int = 4               # blocks of the teacher's decoder before its state is read
    beta: float = 2.0             # of the smooth L1, where it turns linear
    area: float = 0.2             # smallest share of the image's area in a crop
    flip: float = 0.5             # probability of a mirrored crop
    lr: float = 2.4e-3            # of AdamW, generic: 1.5e-4 for every 256 images; rises for 10 of 300 passes
    decay: float = 0.05           # weight decay in both stages
    batch: int = 4096             # images per step, generic
    steps: int = 93_800           # updates, generic: 300 passes over ImageNet
    mixup: float = 0.8            # α of mixup; 0 for none
    cutmix: float = 1.0           # α of cutmix, which takes turns with mixup; 0 for none
    erase: float = 0.25           # probability of an erased box
    smoothing: float = 0.1        # of the labels
    lr_specific: float = 4e-3     # of AdamW, specific: 1e-3 for every 256 images; rises for 5 of 200 passes
    fall: float = 0.75            # of the learning rate from each block to the one before it, specific
    batch_specific: int = 1024    # images per step, specific
    steps_specific: int = 250_000  # updates, specific: 200 passes over ImageNet

    def distill(self, run: Run, student: Module, teacher: Module, expert: Module, data: Dataset) -> Module:
        """`student`, `teacher`: `MAE`s, the teacher pre-trained; `expert`: the teacher finetuned, images → logits."""
        student, teacher, expert = self.autoencoder(student), Frozen(self.autoencoder(teacher)), Frozen(expert)
        width = teacher.model.dim
        guess = nn.Sequential(nn.Linear(student.dim, width), nn.GELU(), nn.Linear(width, width))
        opt = optim.adamw(student, guess, lr=cosine(self.lr, 2.5e-6, warmup=1 / 30), decay=self.decay, betas=(0.9, 0.95))
        run.keep(student=student, guess=guess, opt=opt)

        for x, _ in run.loop(data, batch=self.batch, steps=self.steps, name="generic"):
            x = self.look(x)
            seen = views.visible(torch.rand(len(x), student.encoder.tokens, device=x.device), self.mask)
            taught = teacher(x, seen, self.layers)                                   # [batch, 1 + patches, dim]
            run.update(opt, generic=whitened_smooth_l1(guess(student(x, seen)), taught, self.beta))

        classes = expert(whole(data, 1)[0].to(run.device)).shape[-1]
        student = TwoTokens(student.encoder, classes)
        opt = optim.adamw(student, lr=cosine(self.lr_specific, 1e-6, warmup=1 / 40), decay=self.decay,
                          shares=depths(student.encoder, self.fall))
        run.keep(classifier=student, opt_specific=opt)

        for x, y in run.loop(data, batch=self.batch_specific, steps=self.steps_specific, name="specific"):
            mix, alpha = (views.mixup, self.mixup) if torch.rand(()) < 0.5 else (views.cutmix, self.cutmix)
            x, soft = mix(views.erase(self.look(x), self.erase), views.soft_labels(y, classes, self.smoothing), alpha)
            said, echoed = student.both(x)                                           # [batch, classes] each
            task = -(soft * said.log_softmax(-1)).sum(-1).mean()
            copy = F.cross_entropy(echoed, expert(x).argmax(-1))
            run.update(opt, task=task / 2, copy=copy / 2)

        return student

    def look(self, x: Tensor) -> Tensor:
        return views.flip(views.crops(x, 1, (self.area, 1.0))[0], self.flip)

    def autoencoder(self, net: Module) -> MAE:
        if not isinstance(net, MAE):
            raise Refused(f"{type(net).__name__} is no masked autoencoder", "give stillroom.models.vit.MAE(ViT(…))")
        return net


def whitened_smooth_l1(student: Tensor, teacher: Tensor, beta: float = 2.0) -> Tensor:
    """Smooth L1 to the teacher's tokens, each normalised to mean 0 and variance 1 without scale and shift, ε = 1e-6; mean over
    all elements (sec. 3.2). [batch, tokens, dim]; d²/2β where |d| < β, |d| − β/2 elsewhere."""
    return F.smooth_l1_loss(student, F.layer_norm(teacher, teacher.shape[-1:], eps=1e-6), beta=beta)


def trial(seed=0):
    """Handwritten digits as sixteen patches, fifty of them labelled; settings chosen on validation images of seeds 10 to 12."""
    return G2SD(layers=2, area=1.0, flip=0.0, mixup=0.0, cutmix=0.0, erase=0.0, lr=1e-3, batch=64, steps=300, lr_specific=4e-3,
                batch_specific=64, steps_specific=400), patches(seed)


def proof(student, cast):
    """Better than the same student pre-trained by itself, then tuned on the labels. Beside it, other ways to start and go on."""
    also = {"from scratch, labels": cast.labels("scratch"), "from scratch, specific stage": cast.specific("scratch"),
            "pre-trained by itself, specific stage": cast.specific("self"), "generic stage, labels": cast.labels("generic"),
            "the expert": cast.actors["expert"]}
    return Proof(cast.accuracy(student), beats=cast.accuracy(cast.labels("self")), unit="accuracy", baseline="the student "
                 "pre-trained by itself, fine-tuned on the labels", also={who: cast.accuracy(net) for who, net in also.items()})
