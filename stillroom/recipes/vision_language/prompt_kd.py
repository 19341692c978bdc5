"""PromptKD: Unsupervised Prompt Distillation for Vision-Language Models

Li, Li, Fu, Zhang, Wang, Chen, Yang — CVPR 2024 — https://arxiv.org/abs/2403.02781

    teacher   frozen two-tower model: it comes tuned, or is tuned here by PromptSRC
    reads     features of the image and, once, of a sentence that names each class
    adapter   two layers with a batch norm between, from the width of the image tower to that of the teacher
    compares  KL of softened probabilities over the classes, whose vectors are the teacher's on both sides
    views     one, shared
    data      images of all classes, labels are never read; a few labelled ones of some classes tune the teacher
    learns    tokens at the input of the small image tower's first blocks, and the projector; both towers stay as they are
    stages    the teacher's tuning; the class vectors, after which no text is read any more; distillation
    note      the first block's tokens come in before the block, in the release before CLIP's first norm
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset

from stillroom.arenas.captions import captions
from stillroom.batches import whole
from stillroom.errors import Refused
from stillroom.measure import Proof
from stillroom.models.towers import TwoTowers, per_class, towers, two_towers
from stillroom.parts import losses, optim
from stillroom.parts.heads import ClassVectors, headless
from stillroom.parts.pairs import by_label
from stillroom.parts.pool import images
from stillroom.parts.prompts import Prompted
from stillroom.parts.schedules import cosine
from stillroom.parts.teachers import Frozen
from stillroom.recipe import Recipe
from stillroom.recipes.vision_language.prompt_src import PromptSRC
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class PromptKD(Recipe):
    count: int = 4               # tokens at the input of a block
    depth: int = 9               # blocks that have some
    weight: float = 1000.0       # of the loss, whose mean goes over samples and classes; 200 for fine-grained sets
    temperature: float = 1.0     # softens teacher and student, T
    lr: float = 0.005            # of SGD with momentum 0.9, cosine to 0
    warmup: float = 0.05         # share of the updates in which the rate rises: 1 of 20 epochs
    decay: float = 5e-4          # weight decay
    batch: int = 8               # images per step
    steps: int = 40_000          # updates
    count_teacher: int = 4       # of the teacher's tuning by `shots`: tokens at the input of a block
    steps_teacher: int = 2000    # of the teacher's tuning by `shots`: updates: 20 epochs of 16 images for each of 50 classes

    def distill(self, run: Run, student: Module, teacher: Module, data: Dataset, texts: Tensor,
                shots: Dataset | None = None) -> Module:
        """`student`: a two-tower model, of which it takes the image tower, or an image network, whose last linear layer goes.
        `texts`: tokens of a sentence for each class, or of several for the tuning, [classes, sentences, length]. `shots`: images
        with labels of some classes, to tune the teacher by."""
        x, pair, texts = whole(data, 2)[0].to(run.device), towers(teacher), per_class(texts)
        if shots is not None:
            if run.accumulate > 1:                                               # said by the second loop, after the first
                raise Refused(f"accumulate={run.accumulate} would change this method: the projector's norm sees whole batches",
                              "run it with accumulate=1, and a smaller batch if memory is short")
            tuning = PromptSRC(count=self.count_teacher, depth=self.depth, batch=self.batch, steps=self.steps_teacher)
            pair = tuning(run.part("teacher"), student=pair, data=by_label(shots)[0], texts=texts)
        with torch.no_grad():
            vectors = Frozen(pair.text)(texts[:, 0])                             # [classes, width]
        own = towers(student) if two_towers(student) else TwoTowers(headless(student, x)[0], pair.text, pair.scale)
        teacher = Frozen(ClassVectors(pair.image, vectors, pair.scale.exp()))
        body = Prompted(own.image, x, self.count, self.depth)
        student = ClassVectors(body, vectors, own.scale.exp(), body(x).shape[1])
        opt = optim.sgd(student, lr=cosine(self.lr, warmup=self.warmup), decay=self.decay)
        run.keep(student=student, opt=opt)

        # the projector's batch norm takes the statistics of the batch: no part of a batch can stand for it
        for (x,) in run.loop(images(data), batch=self.batch, steps=self.steps, whole=True):
            run.update(opt, soft=self.weight / len(vectors) * losses.kl(student(x), teacher(x), self.temperature))

        return student


def trial(seed=0):
    """Handwritten digits turned by 30 degrees, to two-tower models that know them as they are written; five classes are shown
    with sixteen labels each, and half of the judgement is on the others. Settings chosen on seeds 10 to 12."""
    return PromptKD(count=1, batch=32, steps=300, count_teacher=1, steps_teacher=40), captions(seed)


def proof(student, cast):
    """Better, over classes that labels were shown of and the others, than the student by its own sentences. Beside it: tokens
    taught to the student by the same labels; this without tokens, where most of it is already; the teacher before its tuning."""
    also = {"few-shot tokens": cast.few_shot(), "PromptSRC": cast.prompt_src(), "the projector alone": cast.other(count=0),
            "teacher": cast.actors["teacher"]}
    found = {f"{who}, {part}": value for who, net in also.items() for part, value in cast.judged(net).items()}
    ours = cast.judged(student)
    return Proof(ours["both"], beats=cast.judged(cast.actors["student"])["both"], unit="harmonic mean",
                 baseline="its own zero-shot classifier", also={"shown": ours["shown"], "others": ours["others"], **found})
