"""Spoken digits with their words: a codec, a teacher that hears the digit, and one that reads its word."""

import copy
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module

from stillroom import recipe
from stillroom.arenas import spoken
from stillroom.arenas.cast import Cast
from stillroom.errors import Refused
from stillroom.measure.features import linear_probe
from stillroom.models.codec import Codec
from stillroom.models.hubert import MeanStates
from stillroom.parts.mel import log_mel
from stillroom.run import Run
from stillroom.zoo.minilm import minilm

CODES, PARTS = 32, 4           # vectors of a codebook; parts of a clip in which their occurrences are counted


def spelled(seed: int = 0) -> Cast:
    """A codec of 160 samples a frame, clips with the number of their word, a small HuBERT, what a text encoder says of the words.

    tells(codec)   accuracy of a linear probe on how often each vector of the first codebook occurs in each quarter of a clip
    mel(codec)     mean |log-mel(decoded) − log-mel(clip)|
    without()      the same codec taught without teachers, as many steps; speech(): with the speech teacher alone
    """
    ground, known = spoken.clips(), words()
    torch.manual_seed(4000 + seed)
    actors = {"student": Codec(filters=4, strides=(4, 5, 8), dim=32, codes=CODES, quantisers=4, layers=1, decay=0.9),
              "data": ground.train,
              "speech": MeanStates(copy.deepcopy(spoken.teacher(seed))), "text": Known(_letters() if known is None else known)}
    reads = "MiniLM" if known is not None else "its letters by a formula"
    return Cast(actors, data=f"{spoken.words()}; {reads} for the words", real=ground.real and known is not None,
                tells=tells, mel=mel, without=lambda: _other(seed, False), speech=lambda: _other(seed, True))


class Known(Module):
    """What a text encoder said of each transcript that occurs: numbers [batch] → [batch, tokens, dim]."""

    def __init__(self, said: Tensor):
        super().__init__()
        self.said = nn.Buffer(said)

    def forward(self, number: Tensor) -> Tensor:
        return self.said[number]


@lru_cache(maxsize=1)
def words(length: int = 26) -> Tensor | None:
    """Mean of MiniLM's hidden states of every word, filled up to `length` tokens, [words, length, dim]; None where this machine
    lacks it. Its weights are checked, and no code that came with them is run."""
    try:
        reads, model = minilm()
    except Refused:
        return None
    net = MeanStates(model)
    tokens = reads(list(spoken.WORDS), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return net(tokens["input_ids"], attention_mask=tokens["attention_mask"])


def _letters(length: int = 26, dim: int = 48) -> Tensor:
    """In the place of a text encoder: a vector of each letter by a formula, and all letters of a word as long."""
    vector = torch.randn(26, dim, generator=torch.Generator().manual_seed(0))
    rows = [[ord(text[n * len(text) // length]) - ord("a") for n in range(length)] for text in spoken.WORDS]
    return vector[torch.tensor(rows)]


@lru_cache(maxsize=4)
def _other(seed: int, speech: bool) -> Codec:
    method, cast = recipe.module("dm_codec").trial(seed)
    del cast.actors["text"]
    if not speech:
        del cast.actors["speech"]
    return method(Run(seed=seed), **cast.actors)


def tells(codec: Codec) -> float:
    """See `spelled`."""
    train, test = (part.tensors for part in (spoken.clips().train, spoken.clips().test))
    return linear_probe((counts(codec, train[0][::3]), train[1][::3]), (counts(codec, test[0]), test[1]), strength=0.02)


def counts(codec: Codec, x: Tensor) -> Tensor:
    """How often each vector of the first codebook occurs in each part of each clip, [clips, parts · vectors]."""
    codes = torch.cat([codec.encode(part)[:, 0] for part in x.split(256)])                     # [clips, frames]
    hot = F.one_hot(codes, CODES).float()
    return torch.cat([part.sum(1) for part in hot.tensor_split(PARTS, 1)], 1)


@torch.no_grad()
def mel(codec: Codec) -> float:
    """See `spelled`."""
    x = spoken.clips().test.tensors[0]
    made = torch.cat([codec(part).wave for part in x.split(100)])
    return F.l1_loss(log_mel(made, spoken.RATE, 512, 120, 40), log_mel(x, spoken.RATE, 512, 120, 40)).item()
