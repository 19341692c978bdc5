"""Causal language models: what they say of the next token."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module


def logits(model: Module, ids: Tensor) -> Tensor:
    """Of the next token, [texts, length, symbols], for ids [texts, length]; those below 0 are no token, and are read as id 0.
    The model returns logits, or what has such `logits`, as transformers' models."""
    said: Any = model(ids.clamp(min=0))
    return getattr(said, "logits", said)


def surprise(model: Module, ids: Tensor) -> Tensor:
    """−log p(token | all before it) in nats for ids [texts, length]: [texts, length − 1], 0 where there is no token."""
    said, next_ids = logits(model, ids[:, :-1]).float().log_softmax(-1), ids[:, 1:]
    each = -said.gather(-1, next_ids.clamp(min=0)[..., None])[..., 0]
    return torch.where(next_ids >= 0, each, 0.0)
