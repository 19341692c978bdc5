"""A small BERT (Devlin et al. 2019), of words by their hash: no vocabulary has to be kept, and any text can be read."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module

from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.spans import words

NONE, MASK, BEGIN = 0, 1, 2       # ids of padding, of a hidden word, of the first token; words come behind
SPECIAL = 3


class Encoded(NamedTuple):
    """Named as in what the encoders of transformers return, so that a tap reads both alike."""
    last_hidden_state: Tensor                 # [texts, length, dim]
    hidden_states: tuple[Tensor, ...]         # the embedding, then the layers
    attentions: tuple[Tensor, ...]            # [texts, heads, length, length] of each layer; rows sum to one


class Bert(Module):
    """Transformer, a norm behind each of its parts; ids [texts, length] → `Encoded`, where 0 is padding that nobody attends to.

    read(texts)   ids [texts, length]: a first token of its own, then the words in lower case
    """

    def __init__(self, dim: int = 64, layers: int = 4, heads: int = 4, length: int = 18, buckets: int = 4096):
        super().__init__()
        self.dim: int = dim
        self.length, self.buckets = length, buckets
        self.config: Any = SimpleNamespace(output_hidden_states=True, output_attentions=True)     # it always tells both
        self.words = nn.Embedding(buckets, dim, padding_idx=NONE)
        self.places = nn.Embedding(length, dim)
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(Layer(dim, heads) for _ in range(layers))
        for weight in (self.words.weight, self.places.weight):
            nn.init.normal_(weight, std=0.5 / dim**0.5)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.words

    def read(self, texts: Sequence[str]) -> Tensor:
        ids = torch.zeros(len(texts), self.length, dtype=torch.long)
        for row, text in zip(ids, texts, strict=True):
            own = [SPECIAL + crc32(text[a:b].casefold().encode()) % (self.buckets - SPECIAL) for a, b in words(text)]
            own = [BEGIN, *own][: self.length]
            row[: len(own)] = torch.tensor(own)
        return ids

    def forward(self, ids: Tensor) -> Encoded:
        there = (ids != NONE)[:, None, None]                                                # [texts, 1, 1, length]
        states, maps = [self.norm(self.words(ids) + self.places.weight[: ids.shape[1]])], []
        for layer in self.layers:
            x, seen = layer(states[-1], there)
            states.append(x)
            maps.append(seen)
        return Encoded(states[-1], tuple(states), tuple(maps))


class Layer(Module):
    """norm(x + attention(x)), then norm(x + mlp(x)): tokens [texts, length, dim], attention [texts, heads, length, length]."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)       # a bias of keys changes nothing, and Adam would walk on its rounding
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)      # [texts, heads, length, d]
        seen = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~there, -1e4).softmax(-1)
        x = self.norm1(x + self.out((seen @ v).transpose(1, 2).flatten(2)))
        return self.norm2(x + self.mlp(x)), seen


class Classifier(Module):
    """An encoder, and a linear layer on the mean of its tokens: ids [texts, length] → logits [texts, classes]."""

    def __init__(self, encoder: Bert, classes: int):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.dim, classes)

    def forward(self, ids: Tensor) -> Tensor:
        there = (ids != NONE)[..., None]
        return self.head((self.encoder(ids).last_hidden_state * there).sum(1) / there.sum(1))


def masked_words(encoder: Bert, ids: Tensor, share: float = 0.15) -> Tensor:
    """Cross-entropy of guessing a share of the words, each hidden with this probability, from the others; the guess is the
    embedding that is nearest. ids [texts, length]; a scalar in nats, the mean over hidden words."""
    hidden = (torch.rand(ids.shape, device=ids.device) < share) & (ids >= SPECIAL)
    found = encoder(ids.masked_fill(hidden, MASK)).last_hidden_state[hidden]                 # [hidden, dim]
    return F.cross_entropy(found @ encoder.words.weight.T, ids[hidden], ignore_index=UNLABELLED, reduction="sum") / max(
        1, len(found))
