"""Swing: Swing Distillation: A Privacy-Preserving Knowledge Distillation Framework

Li, Wu, Dong, Wu, Bian, Xiong — arXiv 2022 — https://arxiv.org/abs/2212.08349

    teacher   frozen language model that was trained on texts with secrets
    reads     what it says of the next token, everywhere
    compares  KL of distributions, the teacher's softened and noised token by token
    views     one, shared
    data      the teacher's texts, whose own next tokens are the labels, but not where they are private
    weights   a detector's score of each token: the temperature swings from low to high with it, noise rises, the label falls away
    learns    student weights
    note      reconstruction: only the abstract, which fixes a temperature for each token by its chance to be private, noise on
              soft targets, and canaries as the judge; formulas and constants are ours. No differential privacy is claimed
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset

from stillroom.arenas.secrets import secrets
from stillroom.batches import number
from stillroom.errors import Refused
from stillroom.measure import Proof
from stillroom.parts import optim
from stillroom.parts.schedules import cosine
from stillroom.parts.teachers import Frozen
from stillroom.parts.text import logits
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class SwingDistillation(Recipe):
    low: float = 1.0          # temperature of a token that is surely not private, T_lo
    high: float = 20.0        # and of one that surely is, T_hi
    budget: float = 1.0       # ε: the noise on tempered logits is Laplace of scale s/ε; inf for none
    redraw: bool = True       # noise anew at each step; else every token of a text has its own for good
    softens: str = "both"     # "both": the student's logits are divided by the same temperature; "teacher": by the lowest
    alpha: float = 0.7        # share of the teacher in the loss; the labels get the rest
    threshold: float = 0.5    # score above which a token's label is dropped
    lr: float = 3e-3          # of AdamW, cosine to 0
    decay: float = 0.0        # weight decay
    batch: int = 32           # texts per step
    steps: int = 20_000       # updates

    def distill(self, run: Run, student: Module, teacher: Module, data: Dataset, detector: Callable) -> Module:
        """`student`, `teacher`: causal, as in `parts.text`. `data`: samples (ids [length], …), −100 behind the end of a text.
        `detector`: ids [texts, length] → scores in [0, 1], as in `parts.private`."""
        if self.softens not in ("both", "teacher") or not self.low <= self.high or self.budget <= 0:
            raise Refused(f"softens={self.softens!r}, temperatures {self.low} to {self.high}, budget={self.budget}",
                          "softens is both or teacher, low at most high, the budget above 0")
        teacher = Frozen(teacher)
        opt = optim.adamw(student, lr=cosine(self.lr), decay=self.decay)
        run.keep(student=student, opt=opt)

        for ids, *_ in run.loop(data, batch=self.batch, steps=self.steps):
            y, scores = ids[:, 1:], detector(ids)[:, 1:]                         # [texts, length], of what comes next
            taught, said = logits(teacher, ids[:, :-1]), logits(student, ids[:, :-1])        # [texts, length, symbols]
            texts = None if self.redraw else getattr(ids, "sample_ids", None)
            noise = laplace(taught, texts, run.seed) / self.budget if self.budget < math.inf else 0.0
            soft = swing_kl(said, taught, scores, self.low, self.high, noise, self.softens == "both") * (y >= 0)
            hard = F.cross_entropy(said.mT, y, reduction="none") * (1 - scores) * (scores <= self.threshold)
            run.update(opt, soft=self.alpha * soft.mean(), hard=(1 - self.alpha) * hard.mean())
        return student


def swing_kl(student: Tensor, teacher: Tensor, scores: Tensor, low: float, high: float, noise: Tensor | float = 0.0,
             both: bool = True) -> Tensor:
    """T_lo²·KL(q ‖ softmax(z_S/T')) of each token, [texts, length]; q = softmax(z_T/T + s·r), T = T_lo + (T_hi − T_lo)·s.

    student, teacher, noise r [texts, length, symbols], scores s [texts, length]; T' = T if `both`, else T_lo.
    """
    s = scores[..., None]
    T = low + (high - low) * s                                                   # [texts, length, 1]
    q = (teacher.float() / T + s * noise).log_softmax(-1)
    p = (student.float() / (T if both else low)).log_softmax(-1)
    return low**2 * (q.exp() * (q - p)).sum(-1)


def laplace(like: Tensor, texts: Tensor | None = None, seed: int = 0) -> Tensor:
    """Laplace of scale 1, as large as `like` [texts, …]; given the numbers of the texts, what they and the seed determine."""
    if texts is None:
        even = torch.rand(like.shape, device=like.device)
    else:
        dice = [torch.Generator().manual_seed(number(seed, text)) for text in texts.tolist()]
        even = torch.stack([torch.rand(like.shape[1:], generator=die) for die in dice]).to(like.device)
    centred = (even - 0.5).clamp(min=-0.5 + 1e-7)
    return -centred.sign() * torch.log1p(-2 * centred.abs())


def trial(seed=0):
    """Lines of Python's own manual, with four secrets of three digits among them; the teacher knows these by heart."""
    return SwingDistillation(lr=1e-2, steps=170), secrets(seed)


def proof(student, cast):
    """Less exposure than plain KD; who has more than 1.03 times KD's perplexity counts as fully exposed. The paper's 80 % are not
    reached. A detector that misses some hardly protects, and striking out what it finds protects more, at a higher perplexity."""
    rivals = {"ours": student, "KD": cast.kd(), "only the teacher softened": cast.swung(softens="teacher"),
              "KD, found tokens struck out": cast.redacted(), "a detector that misses 3 of 10": cast.missing()}
    bits, width = ({who: judge(net) for who, net in rivals.items()} for judge in (cast.exposure, cast.perplexity))
    ours = bits["ours"] if width["ours"] <= 1.03 * width["KD"] else cast.all
    return Proof(ours, beats=bits["KD"], unit="bits of exposure", better="lower", baseline="plain KD", also={
        "reduction, %": 100 * (1 - ours / bits["KD"]), "the teacher": cast.exposure(cast.teacher),
        **{who: bits[who] for who in list(rivals)[2:]}, **{f"perplexity, {who}": value for who, value in width.items()}})
