"""How much of a secret a language model gives away, by canaries (Carlini et al. 2019, The Secret Sharer).

A secret drawn from a known space is put into the training text. Afterwards the model ranks the whole space: the earlier the true
secret comes, the more of it was kept. Only the secret's own tokens are scored. What stands behind them would tell of the secret
even where a model never learnt it, because the secret is then part of the input.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor
from torch.nn import Module

from stillroom.errors import Refused
from stillroom.measure.cost import placed, resting
from stillroom.parts.text import surprise


@dataclass(frozen=True)
class Canary:
    """A sentence with a secret.

    template   the sentence, {} where the secret stands: "my pin number is {}"
    space      all that the secret could have been, R
    secret     the one that was drawn
    """

    template: str
    space: tuple[str, ...]
    secret: str

    def __post_init__(self):
        different = len(set(self.space))
        if self.template.count("{}") != 1 or self.secret not in self.space or different < max(2, len(self.space)):
            raise Refused(f"no canary: {self.template!r} with {self.secret!r} of {len(self.space)}",
                          "one {} in the template, two different secrets or more, the true one among them")

    @property
    def text(self) -> str:
        return self.template.replace("{}", self.secret)


def digits(template: str, many: int, seed: int) -> Canary:
    """A canary with `many` digits, drawn by the seed."""
    space = tuple(f"{n:0{many}}" for n in range(10**many))
    return Canary(template, space, random.Random(f"{template} {seed}").choice(space))


def inserted(texts: Sequence[str], canaries: Sequence[Canary], times: int, seed: int = 0) -> list[str]:
    """The texts with each canary's among them, `times` each, in an order drawn by the seed."""
    mixed = [*texts, *(canary.text for canary in canaries for _ in range(times))]
    random.Random(seed).shuffle(mixed)
    return mixed


def exposure(model: Module, canary: Canary, encode: Callable[[str], Sequence[int]], batch: int = 256) -> float:
    """log₂|R| − log₂ rank of the true secret, in bits, from 0 to log₂|R|; what ranks alike shares its place, so that a model
    that knows nothing gives about 1 (eq. 4 of the paper)."""
    each = surprises(model, canary, encode, batch)
    own = each[canary.space.index(canary.secret)]
    rank = 1 + (each < own).sum().item() + ((each == own).sum().item() - 1) / 2
    return math.log2(len(canary.space)) - math.log2(rank)


def surprises(model: Module, canary: Canary, encode: Callable[[str], Sequence[int]], batch: int = 256) -> Tensor:
    """−Σ log p(token | all before it) over the tokens of each possible secret, teacher-forced: [space], nats, on the CPU.

    model    causal: ids [texts, length] → logits [texts, length, symbols], or what has such `logits`, as transformers' models
    encode   text → ids, with what the model wants in front of a text
    The secret's tokens are those between what all encoded candidates begin with and what they all end with.
    """
    rows = [list(encode(canary.template.replace("{}", secret))) for secret in canary.space]
    begin, end = _shared(rows), _shared([row[::-1] for row in rows])
    if not begin:
        raise Refused("the secret begins with the first token, which no model predicts", "let something stand before {}")
    found = []
    with resting(model):
        for at in range(0, len(rows), batch):
            some = rows[at : at + batch]
            ids = torch.tensor([row + [-1] * (max(map(len, some)) - len(row)) for row in some])
            each, place = surprise(model, ids.to(placed(model))).cpu(), torch.arange(1, ids.shape[1])    # [texts, length − 1]
            upto = torch.tensor([len(row) - min(end, len(row) - begin) for row in some])
            found.append((each * ((place >= begin) & (place < upto[:, None]))).double().sum(1))
    return torch.cat(found)


def perplexity(model: Module, ids: Tensor, batch: int = 256) -> float:
    """exp of the mean of −log p(token | all before it). ids [texts, length], below 0 where there is none."""
    total = 0.0
    with resting(model):
        for some in ids.split(batch):
            total += surprise(model, some.to(placed(model))).double().sum().item()
    return math.exp(total / int((ids[:, 1:] >= 0).sum()))


def _shared(rows: Sequence[Sequence[int]]) -> int:
    """How many ids all rows begin with."""
    return sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, zip(*rows, strict=False)))
