"""Comparisons of what transformers of texts hold inside, layer by layer, without padding: hidden states, attention maps."""

import torch
from torch import Tensor

from stillroom.errors import Refused

LEAST = 1e-9     # below which a probability has no logarithm: what dropout zeroed, or what lies under the floor of the numbers


def uniform(own: int, theirs: int) -> list[int]:
    """The layer g(m) = m·L_t/L_s, rounded down, of a teacher of `theirs` layers for each layer of a student of `own`; g(0) = 0 is
    the embedding: 4 over 12 → 0, 3, 6, 9, 12. Raises `Refused` where the student has more layers than the teacher."""
    if not 0 < own <= theirs:
        raise Refused(f"a student of {own} layers cannot follow a teacher of {theirs} layer by layer",
                      "give a student of at most as many, and at least one")
    return [m * theirs // own for m in range(own + 1)]


def hidden_mse(student: Tensor, teacher: Tensor, there: Tensor) -> Tensor:
    """Squared error, mean over the numbers of a token, over the tokens of a text, over texts (TinyBERT, Jiao et al. 2020, eq. 8).

    student, teacher [texts, tokens, dim], of one width; there [texts, tokens]: whether a token is none of padding. A scalar.
    """
    error = (student.float() - teacher.float()).square().mean(-1)                            # [texts, tokens]
    return _per_text(error, there)


def attention_kl(student: Tensor, teacher: Tensor, there: Tensor) -> Tensor:
    """KL(A_t ‖ A_s) of each token's distribution of attention; mean over heads, tokens of a text, texts. Nats.

    Maps [texts, heads, tokens, tokens], each row a distribution; of differently many heads the means over heads are compared.
    there [texts, tokens] as above: neither rows nor columns of padding count. What dropout zeroed in the student passes no
    gradient.
    """
    a, b = _alike(student, teacher, there)
    return _per_text((b * (b.clamp(min=LEAST).log() - a.clamp(min=LEAST).log())).sum(-1).mean(1), there)


def attention_mse(student: Tensor, teacher: Tensor, there: Tensor) -> Tensor:
    """Squared error of attention maps, mean over the columns of real tokens, heads, tokens of a text, texts (cf. TinyBERT, eq. 7,
    which compares the scores before the softmax). Arguments as `attention_kl`."""
    a, b = _alike(student, teacher, there)
    return _per_text((a - b).square().sum(-1).mean(1) / there.sum(1, keepdim=True).clamp(min=1), there)


def _alike(student: Tensor, teacher: Tensor, there: Tensor) -> list[Tensor]:
    maps = [student.float(), teacher.float()]
    if student.shape[1] != teacher.shape[1]:
        maps = [m.mean(1, keepdim=True) for m in maps]
    return [torch.where(there[:, None, None], m, 0.0) for m in maps]                         # [texts, heads, tokens, tokens]


def _per_text(values: Tensor, there: Tensor) -> Tensor:
    return ((values * there).sum(1) / there.sum(1).clamp(min=1)).mean()
