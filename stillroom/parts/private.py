"""Which tokens tell something private: detectors, ids [texts, length] → a score in [0, 1] of each token, [texts, length].

Any function of that form will do, such as a tagger of names that tells its probability. Ids below 0 are no token and score 0.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Module

from stillroom.parts.teachers import Frozen
from stillroom.parts.text import surprise

PATTERNS = (r"\d", r"[\w.+-]+@[\w-]+\.[\w.]+", r"\+?\d[\d ()/-]{5,}\d")     # digits, addresses of e-mail, numbers of telephones


class Patterns:
    """1 for each token that shares a character with a match, 0 elsewhere.

    symbols    of each id the characters that it stands for; joined they are the text
    patterns   regular expressions
    names      words to be found beside, whole, whatever their case
    """

    def __init__(self, symbols: Sequence[str], patterns: Sequence[str] = PATTERNS, names: Sequence[str] = ()):
        self.symbols = list(symbols)
        self.patterns = [re.compile(p) for p in (*patterns, *(rf"(?i:\b{re.escape(name)}\b)" for name in names))]

    def __call__(self, ids: Tensor) -> Tensor:
        scores = torch.zeros(ids.shape)
        for row, own in zip(ids.tolist(), scores, strict=True):
            parts = [self.symbols[i] if i >= 0 else "" for i in row]
            places = [n for n, part in enumerate(parts) for _ in part]           # whose character it is
            for match in (m for pattern in self.patterns for m in pattern.finditer("".join(parts))):
                own[sorted(set(places[slice(*match.span())]))] = 1.0
        return scores.to(ids.device)


class Memorised(Module):
    """σ(a·(log p_T − log p_ref − b)): private is what the teacher is much surer of than a model that never saw its texts.

    teacher, reference   causal language models; a, b: slope, and nats where it is one half
    """

    def __init__(self, teacher: Module, reference: Module, a: float = 2.0, b: float = 2.0):
        super().__init__()
        self.teacher, self.reference, self.a, self.b = Frozen(teacher), Frozen(reference), a, b

    @torch.no_grad()
    def forward(self, ids: Tensor) -> Tensor:
        gap = surprise(self.reference, ids) - surprise(self.teacher, ids)                    # [texts, length − 1]
        scores = torch.sigmoid(self.a * (gap - self.b)) * (ids[:, 1:] >= 0)
        return torch.cat([torch.zeros_like(scores[:, :1]), scores], 1)           # nothing predicts the first token


def nothing(ids: Tensor) -> Tensor:
    """No token is private."""
    return torch.zeros(ids.shape, device=ids.device)
