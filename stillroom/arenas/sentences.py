"""Short texts of many classes, few of them labelled: what people ask for, or else what the manuals on this machine say."""

import copy
import gzip
import json
import random
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from types import SimpleNamespace

import torch
from torch.nn import Module
from torch.utils.data import TensorDataset

from stillroom.arenas.cast import Cast, variant
from stillroom.arenas.manual import passages
from stillroom.errors import Refused
from stillroom.measure import accuracy
from stillroom.models.bert import Bert, Classifier, masked_words
from stillroom.parts import losses, optim
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.schedules import linear
from stillroom.run import Run

DOMAINS = ("banking", "credit_cards")      # of CLINC150; the corpus holds all ten
NAMES = 24                       # parameters of the manuals, those that occur most
LABELS = 3                       # of each class
LENGTH = 12                      # tokens of a text
Row = tuple[str, str]            # text, class


@lru_cache(maxsize=1)
def ground() -> SimpleNamespace:
    """corpus: texts without classes, those of the task's training part among them; train, valid, test: texts of the task with
    their classes. In the manuals the class is the name of the parameter that a text describes."""
    from stillroom.zoo import shared

    try:
        folder = shared.home("clinc150")
    except Refused:
        return _manuals()
    found = json.loads(gzip.decompress((folder / "data_full.json.gz").read_bytes()))
    domains = json.loads((folder / "domains.json").read_text(encoding="utf-8"))
    task = {intent for domain in DOMAINS for intent in domains[domain]}
    parts = {part: [(text, intent) for text, intent in found[name] if intent in task]
             for part, name in (("train", "train"), ("valid", "val"), ("test", "test"))}
    return SimpleNamespace(corpus=[text for text, _ in found["train"]], **parts,
                           data=f"CLINC150: {len(task)} intents of 150, {LABELS} labels each")


def _manuals() -> SimpleNamespace:
    rows = [(passage.text.partition(". ")[2], passage.names[0]) for passage, *_ in passages()]
    common = {name for name, _ in Counter(name for _, name in rows).most_common(NAMES)}
    own = [row for row in rows if row[1] in common]
    random.Random(0).shuffle(own)
    held = set(own[: 2 * (part := len(own) // 5)])
    return SimpleNamespace(corpus=[text for text, name in rows if (text, name) not in held], train=own[2 * part :],
                           valid=own[:part], test=own[part : 2 * part],
                           data=f"descriptions of {NAMES} parameters in the manuals of numpy, scipy, scikit-learn, "
                                f"{LABELS} labels each")


def sentences(seed: int = 0) -> Cast:
    """A small BERT as student, one of twice its depth as teacher, the same taught by every label of the task as expert.

    accuracy(net)     share of right answers on the test texts, in percent; of the texts to choose by with valid=True
    staged(**fields)  what the trial of ernie_tiny makes with these fields changed
    """
    drawn = rows(seed)
    teacher, expert = teachers()
    torch.manual_seed(1000 + seed)
    student = Classifier(Bert(48, 2, length=LENGTH), drawn.classes)
    return Cast({"student": student, "teacher": copy.deepcopy(teacher), "expert": copy.deepcopy(expert), "corpus": drawn.corpus,
                 "data": drawn.few}, data=ground().data,
                accuracy=lambda net, valid=False: accuracy(net, drawn.valid if valid else drawn.test), expert=expert,
                staged=lambda **fields: variant("ernie_tiny", seed, **fields))


@lru_cache(maxsize=4)
def rows(seed: int) -> SimpleNamespace:
    """The texts as ids; the few labelled ones are drawn by the seed."""
    found, encoder = ground(), Bert(4, 1, length=LENGTH)
    number = {name: n for n, name in enumerate(sorted({name for _, name in found.train}))}

    def taken(own: Sequence[Row]) -> TensorDataset:
        return TensorDataset(encoder.read([text for text, _ in own]), torch.tensor([number[name] for _, name in own]))
    order = random.Random(seed).sample(found.train, len(found.train))
    few = [row for name in number for row in [r for r in order if r[1] == name][:LABELS]]
    corpus = encoder.read(found.corpus)
    return SimpleNamespace(corpus=TensorDataset(corpus, torch.full((len(corpus),), UNLABELLED)), few=taken(few),
                           train=taken(found.train), valid=taken(found.valid), test=taken(found.test), classes=len(number))


@lru_cache(maxsize=1)
def teachers() -> tuple[Bert, Module]:
    """One for all seeds: pre-trained on the corpus by guessing hidden words; a copy of it finetuned on the whole task."""
    drawn = rows(0)
    torch.manual_seed(0)
    teacher = Bert(48, 4, length=LENGTH)
    run, opt = Run(device="cpu"), optim.adamw(teacher, lr=linear(5e-3, warmup=0.1))
    run.keep(teacher=teacher, opt=opt)
    for x, _ in run.loop(drawn.corpus, batch=32, steps=300, whole=True):
        run.update(opt, words=masked_words(teacher, x, 0.3))
    expert = Classifier(copy.deepcopy(teacher), drawn.classes)
    run, opt = Run(device="cpu"), optim.adamw(expert, lr=linear(3e-3, warmup=0.1))
    run.keep(expert=expert, opt=opt)
    for x, y in run.loop(drawn.train, batch=16, steps=400):
        run.update(opt, labels=losses.labels(expert(x), y))
    return teacher.eval(), expert.eval()
