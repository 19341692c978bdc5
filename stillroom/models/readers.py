"""Encoders of texts: each knows its own tokens, and where they stand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn import Module

from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.spans import Passage, Span, covered, mentions, runs, words


class Reader(Module):
    """A small one: words as hashed pieces of their spelling, then layers that see one, two, four … words to both sides.

    read(texts)   tokens [texts, length, pieces], 0 for none, and where each token stands
    forward       [texts, length, pieces] → [texts, length, dim]
    """

    def __init__(self, dim: int = 48, layers: int = 5, buckets: int = 4096, length: int = 64, pieces: int = 8):
        super().__init__()
        self.dim: int = dim
        self.buckets, self.length, self.pieces = buckets, length, pieces
        self.embed = nn.EmbeddingBag(buckets, dim, mode="sum", padding_idx=0)
        self.layers = nn.ModuleList(nn.Linear(3 * dim, dim) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers + 1))

    def read(self, texts: Sequence[str]) -> tuple[Tensor, list[list[Span]]]:
        spans = [words(text)[: self.length] for text in texts]
        empty, none = [0] * self.pieces, [[0] * self.pieces] * self.length
        rows = []
        for text, own in zip(texts, spans, strict=True):
            row = [[1 + crc32(p.encode()) % (self.buckets - 1) for p in _pieces(text[a:b])[: self.pieces]] for a, b in own]
            rows.append([(ids + empty)[: self.pieces] for ids in row] + none[len(row) :])
        return torch.tensor(rows).view(len(texts), self.length, self.pieces), spans

    def forward(self, ids: Tensor) -> Tensor:
        there = (ids != 0).any(-1, keepdim=True)                                           # [texts, length, 1]
        x = self.norms[0](self.embed(ids.flatten(0, 1)).view(*ids.shape[:2], self.dim)) * there
        for n, (layer, norm) in enumerate(zip(self.layers, self.norms[1:], strict=True)):
            far, size = 2**n, x.shape[1]
            wide = nn.functional.pad(x, (0, 0, far, far))
            beside = torch.cat([wide[:, :size], x, wide[:, 2 * far :]], -1)                 # [texts, length, 3·dim]
            x = (x + norm(nn.functional.gelu(layer(beside)))) * there
        return x


class Pretrained(Module):
    """An encoder of transformers with its own tokenizer, from a folder or the hub: BERT, PubMedBERT, …

    read(texts)   tokens [texts, length], and where each token stands; padding stands nowhere: (0, 0)
    forward       [texts, length] → [texts, length, dim]
    """

    def __init__(self, name: str | Path, length: int = 256):
        from stillroom._compat import package

        super().__init__()
        transformers = package("transformers")
        self.words = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        self.net = transformers.AutoModel.from_pretrained(name, trust_remote_code=False)
        self.dim, self.length = self.net.config.hidden_size, length

    def read(self, texts: Sequence[str]) -> tuple[Tensor, list[list[Span]]]:
        batch = self.words(list(texts), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt",
                           return_offsets_mapping=True)
        return batch["input_ids"], [[(a, b) for a, b in own] for own in batch["offset_mapping"].tolist()]

    def forward(self, ids: Tensor) -> Tensor:
        return self.net(input_ids=ids, attention_mask=(ids != self.words.pad_token_id).long()).last_hidden_state


class Extractor(Module):
    """An encoder and one linear layer that asks of every token: is it what is looked for, of this name? Each text is encoded
    once, whatever the number of its names.

    forward   tokens, first tokens of the names [texts, names] (−1: none) → logits [texts, names, length]
    """

    def __init__(self, encoder: Module):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(2 * encoder.dim, 1)

    def forward(self, ids: Tensor, firsts: Tensor) -> Tensor:
        h = self.encoder(ids)                                                               # [texts, length, dim]
        own, name = self.head.weight[0].split(h.shape[-1])
        asked = (h @ name).gather(1, firsts.clamp(min=0))                                   # [texts, names]
        return (h @ own)[:, None] + asked[..., None] + self.head.bias                       # w · [h_t; h_s] + b

    @torch.no_grad()
    def extract(self, passages: Sequence[Passage], batch: int = 64) -> list[dict[str, list[str]]]:
        """The strings found for each name of each passage."""
        found: list[dict[str, list[str]]] = []
        place = self.head.weight.device
        for at in range(0, len(passages), batch):
            some = passages[at : at + batch]
            ids, spans = self.encoder.read([p.text for p in some])
            firsts, names = anchors(some, spans)
            yes = self(ids.to(place), firsts.to(place)).cpu() > 0
            for n, passage in enumerate(some):
                own: dict[str, list[str]] = {name: [] for name in passage.names}
                for m, name in enumerate(names[n]):
                    strings = [passage.text[a:b] for a, b in runs(yes[n, m].tolist(), spans[n])]
                    own[name] += [s for s in strings if s not in own[name]]
                found.append(own)
        return found


def anchors(passages: Sequence[Passage], spans: Sequence[Sequence[Span]]) -> tuple[Tensor, list[list[str]]]:
    """Every mention of every name: its first token, [passages, mentions], −1 where there are fewer; and whose mention it is."""
    found = [[(covered(own, [place])[:1], name) for name in p.names for place in mentions(p.text, name)]
             for p, own in zip(passages, spans, strict=True)]
    seen = [[(first[0], name) for first, name in row if first] for row in found]             # beyond the length, none is
    firsts = torch.full((len(seen), max([1, *map(len, seen)])), -1)
    for n, row in enumerate(seen):
        firsts[n, : len(row)] = torch.tensor([first for first, _ in row], dtype=torch.long)
    return firsts, [[name for _, name in row] for row in seen]


def marked(encoder: Module, passages: Sequence[Passage], found: Sequence[Mapping[str, Sequence[str]]]) -> tuple[Tensor, ...]:
    """Passages and the strings found in them as tensors: tokens; first token of each mention [passages, mentions]; and whether
    a token is part of a string found for it [passages, mentions, length]: 1, 0, or −100 for padding and missing mentions."""
    ids, spans = encoder.read([p.text for p in passages])
    firsts, names = anchors(passages, spans)
    parts = torch.full((*firsts.shape, ids.shape[1]), UNLABELLED, dtype=torch.int8)
    for n, (passage, own) in enumerate(zip(passages, spans, strict=True)):
        there = [i for i, (a, b) in enumerate(own) if a < b]
        for m, name in enumerate(names[n]):
            parts[n, m, there] = 0
            places = [place for string in found[n].get(name, ()) for place in mentions(passage.text, string)]
            parts[n, m, covered(own, places)] = 1
    return ids, firsts, parts


def _pieces(word: str) -> list[str]:
    """A word, its shape, and three letters at a time."""
    shape = "".join("9" if c.isdigit() else "A" if c.isupper() else "a" if c.isalpha() else c for c in word)[:6]
    low = f"<{word.casefold()}>"
    return [word, "shape " + shape, *(low[n : n + 3] for n in range(len(low) - 2))]
