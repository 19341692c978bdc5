"""ADE-Distill: Distilling Large Language Models for Biomedical Knowledge Extraction: A Case Study on Adverse Drug Events

Gu, Zhang, Usuyama, Woldesenbet, Wong, Sanapathi, Wei, Valluri, Strandberg, Naumann, Poon — arXiv 2023 — https://arxiv.org/abs/2307.06439

    teacher   black box: a language model that is asked once about each passage, in words, with a few examples
    reads     its answers: for each name, a list of strings
    adapter   strings are found again in the passage, wherever they stand; what does not stand there was made up, and falls out
    compares  binary cross-entropy of each token with being part of an answer, for each mention of a name
    data      passages (text, names) without labels; names without an answer count, too
    learns    student weights and a linear layer on [token; first token of the name]
    stages    ask the teacher; teach the student
    note      reconstruction: words of the prompt and the optimiser's settings are not in the paper
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset, TensorDataset

from stillroom.arenas.manual import TASK, manual
from stillroom.measure import Proof
from stillroom.models.readers import Extractor, marked
from stillroom.parts import optim
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.schedules import linear
from stillroom.parts.spans import Passage, parse, prompt
from stillroom.parts.teachers import Oracle
from stillroom.recipe import Recipe
from stillroom.run import Run


@dataclass(frozen=True, kw_only=True)
class ADEDistill(Recipe):
    task: str = "Adverse effects of each drug, word for word:"      # what the teacher is told
    group: int = 64           # passages handed to the teacher at a time
    lr: float = 2e-5          # of AdamW, risen to in the first tenth, then straight to 0
    decay: float = 0.01       # weight decay
    batch: int = 32           # passages per step
    steps_ask: int = 625      # groups of passages to ask about, at most all: 40,000 passages
    steps: int = 19_000       # updates: 15 epochs of 40,000 passages

    def distill(self, run: Run, student: Module, teacher: Oracle, data: Dataset, examples: list[tuple] | None = None) -> Module:
        """`student`: `read(texts)`, `dim` and a forward to [texts, length, dim], as in models.readers. `data`: samples
        (Passage, −100). `examples`: (Passage, {name: strings}) that the teacher is shown. Returns an `Extractor`."""
        said: list[str] = []
        run.keep(said=said)
        for step in run.loop(steps=min(self.steps_ask, -(-len(data) // self.group)), name="ask"):
            some = range(step * self.group, min(len(data), (step + 1) * self.group))
            said += [answer.text for answer in teacher([prompt(self.task, Passage(*data[i][0]), examples or ()) for i in some])]

        passages = [Passage(*data[i][0]) for i in range(len(said))]
        found = [parse(text, passage) for text, passage in zip(said, passages, strict=True)]
        taught = TensorDataset(*marked(student, passages, found))
        extractor = Extractor(student)
        opt = optim.adamw(extractor, lr=linear(self.lr, warmup=0.1), decay=self.decay)
        run.keep(extractor=extractor, opt=opt)

        for tokens, firsts, parts in run.loop(taught, batch=self.batch, steps=self.steps, name="teach", whole=True):
            run.update(opt, tokens=token_loss(extractor(tokens, firsts), parts))
        return extractor


def token_loss(logits: Tensor, parts: Tensor) -> Tensor:
    """Binary cross-entropy, the mean over all tokens of all names. logits, parts [texts, names, length]: 1 in an answer, 0 not,
    −100 where there is no token or no name."""
    there = parts != UNLABELLED
    return F.binary_cross_entropy_with_logits(logits[there], parts[there].to(logits.dtype))


def trial(seed=0):
    """The manuals of numpy, scipy and scikit-learn: the value of each parameter when it is left out."""
    return ADEDistill(task=TASK, lr=3e-3, steps_ask=32, steps=400), manual(seed)


def proof(extractor, cast):
    """It is right more often than the answers that it learnt from: what was wrong now here, now there is averaged out. It is not
    better than the same teacher's surest answers, nor than the student on the teacher's examples: both are shown beside it."""
    found = extractor.extract([passage for passage, _ in cast.test])
    taught = cast.teacher()
    return Proof(cast.f1(found), beats=cast.f1(taught), unit="lenient F1",
                 baseline="the teacher's answers, drawn at temperature 1.5",
                 also={"strict": cast.f1(found, lenient=False), "strict, the teacher's": cast.f1(taught, lenient=False),
                       "the teacher's surest answers": cast.f1(cast.surest()),
                       "the student on the teacher's own examples": cast.f1(cast.alone())})
