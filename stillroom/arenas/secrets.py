"""Python's manual, by characters, with secrets among its lines: what a language model keeps of them."""

import copy
import math
import random
import textwrap
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.data import TensorDataset

from stillroom.arenas.cast import Cast, variant
from stillroom.measure.exposure import digits, exposure, inserted, perplexity
from stillroom.models.gru import GRULanguageModel
from stillroom.parts import optim
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.private import Patterns
from stillroom.parts.schedules import cosine
from stillroom.parts.text import surprise
from stillroom.run import Run

SYMBOLS = "\n abcdefghijklmnopqrstuvwxyz0123456789.,'()-_=[]{}:;/+*\"<>!?#%&|@~^$\\`"     # the first begins a line
LINES, HELD, LENGTH = 200, 400, 32       # lines to learn, lines held out, characters of a line
TIMES = 10                               # that each secret stands among the lines
TEMPLATES = ("my pin number is {}", "the door opens with {}", "her locker has code {}", "ask for extension {}")


def encode(text: str) -> list[int]:
    return [0, *(SYMBOLS.find(c) for c in text)]


def ids(lines: list[str]) -> Tensor:
    """[lines, 1 + LENGTH], −100 behind the end."""
    rows = torch.full((len(lines), LENGTH + 1), UNLABELLED)
    for row, line in zip(rows, lines, strict=True):
        own = encode(line)
        row[: len(own)] = torch.tensor(own)
    return rows


@lru_cache(maxsize=1)
def manual() -> list[str]:
    """Lines of the language's reference that is part of every Python, in lower case, each once."""
    from pydoc_data.topics import topics

    text = " ".join(" ".join(topics[name].split()) for name in sorted(topics)).casefold()
    text = "".join(c for c in text if c in SYMBOLS)
    return list(dict.fromkeys(textwrap.wrap(text[:200_000], LENGTH)))


@lru_cache(maxsize=4)
def split(seed: int) -> SimpleNamespace:
    lines = random.Random(seed).sample(manual(), LINES + HELD)
    canaries = [digits(template, 3, seed) for template in TEMPLATES]
    train = ids(inserted(lines[:LINES], canaries, TIMES, seed))
    return SimpleNamespace(train=TensorDataset(train, torch.full((len(train),), UNLABELLED)), held=ids(lines[LINES:]),
                           canaries=canaries)


def secrets(seed: int = 0) -> Cast:
    """A large network of characters that was taught lines and secrets as teacher, one of half its width as student, a detector of
    digits.

    exposure(net)     of the secrets, mean over them, in bits: log₂ 1000 = 9.97 is all, a network that knows nothing has 1.4
    perplexity(net)   of a character of lines that nobody learnt
    kd(), redacted(), missing(), swung(**fields)   plain KD; the same where the detector struck out what it found; the method with
                      a detector that misses three of ten; the method with these fields changed
    """
    parts = split(seed)
    return Cast({"student": _fresh_student(seed), "teacher": copy.deepcopy(_teacher(seed)), "data": parts.train,
                 "detector": Patterns(SYMBOLS)}, data=f"the language reference that comes with Python, {LINES} lines, and "
                f"{len(TEMPLATES)} secrets of three digits, each {TIMES} times", all=math.log2(10**3), teacher=_teacher(seed),
                exposure=lambda net: sum(exposure(net, c, encode) for c in parts.canaries) / len(parts.canaries),
                perplexity=lambda net: perplexity(net, parts.held), kd=lambda: _kd(seed), redacted=lambda: _kd(seed, True),
                missing=lambda: _missing(seed), swung=partial(variant, "swing_distillation", seed))


def _fresh_student(seed: int) -> Module:
    torch.manual_seed(1000 + seed)
    return GRULanguageModel(len(SYMBOLS), 64)


@lru_cache(maxsize=4)
def _teacher(seed: int) -> Module:
    """Taught until it knows the secrets by heart, as a large model does that sees a text often enough."""
    torch.manual_seed(seed)
    teacher = GRULanguageModel(len(SYMBOLS), 128)
    run, opt = Run(seed=seed, device="cpu"), optim.adamw(teacher, lr=cosine(8e-3), decay=0.0)
    run.keep(teacher=teacher, opt=opt)
    for ids, _ in run.loop(split(seed).train, batch=32, steps=170):
        run.update(opt, words=surprise(teacher, ids).sum() / ids[:, 1:].numel())
    return teacher.eval()


@lru_cache(maxsize=8)
def _kd(seed: int, redacted: bool = False) -> Module:
    """Every token alike, with the trial's budget."""
    from stillroom.parts.private import nothing

    found = split(seed).train.tensors[0]
    struck = found.masked_fill(Patterns(SYMBOLS)(found) > 0.5, UNLABELLED) if redacted else found
    return _swing(seed, TensorDataset(struck, torch.full((len(struck),), UNLABELLED)), nothing, budget=float("inf"))


@lru_cache(maxsize=4)
def _missing(seed: int) -> Module:
    detector = Patterns(SYMBOLS)
    return _swing(seed, split(seed).train, lambda ids: detector(ids) * (torch.rand(ids.shape) < 0.7))


def _swing(seed: int, data: TensorDataset, detector: Callable, **fields) -> Module:
    from stillroom.recipes.language import swing_distillation  # which stands on this ground itself

    method = replace(swing_distillation.trial(seed)[0], **fields)
    return method(Run(seed=seed), student=_fresh_student(seed), teacher=copy.deepcopy(_teacher(seed)), data=data,
                  detector=detector)
