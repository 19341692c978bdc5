"""From rows as they are read to what the live teacher would have given: on the device, each token in its place."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stillroom.errors import Refused
from stillroom.parts.losses.tokens import Top
from stillroom.store.layout import Layout
from stillroom.store.reading import Read


def shown(x: Any) -> Tensor | None:
    """Which tokens of a batch count, bool [batch, tokens]: what `attention_mask` says, or all. None: these are no tokens."""
    ids = x.get("input_ids") if isinstance(x, Mapping) else x
    if ids is None or ids.is_floating_point() or ids.ndim != 2:
        return None
    mask = x.get("attention_mask") if isinstance(x, Mapping) else None
    return torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()


def as_live(read: Read, layout: Layout, features: Sequence[str], x: Any, device: torch.device,
            dense: bool = False, temperature: float = 1.0) -> tuple[Tensor | Top, list[Tensor]]:
    """Logits [batch, …] and the named features. Of tokens: log-probabilities where K are kept, as a `Top` [batch, tokens, k] at a
    temperature, or `dense` ones; 0, and in a `Top` no id, where there is padding. Raises `Refused` for other tokens."""
    chosen = [(read.features[name], layout.outputs[1 + layout.names.index(name)].tokens) for name in features]
    if read.counts is None:
        return read.dense().to(device), [value.to(device).float() for value, _ in chosen]
    mask = shown(x)
    if mask is None or not torch.equal(mask.sum(1).cpu(), read.counts):
        raise Refused("these inputs have other numbers of tokens than those that the teacher saw",
                      "use the data, with the same tokenizer and length, that the store was written from")
    found = [_placed(value.to(device).float(), mask) if tokens else value.to(device).float() for value, tokens in chosen]
    if isinstance(read.logits, Tensor):
        return _placed(read.logits.to(device).float(), mask), found
    kept = read.logits.to(device)
    if dense:
        return _placed(kept.summed().dense(), mask), found
    kept = kept.softened(temperature)
    return Top(_placed(kept.ids.where(kept.ids < kept.classes, 0), mask), _placed(kept.logp, mask, -torch.inf)), found


def _placed(rows: Tensor, mask: Tensor, fill: float = 0.0) -> Tensor:
    """Rows of tokens [shown, …] → [batch, tokens, …]."""
    out = rows.new_full((*mask.shape, *rows.shape[1:]), fill)
    out[mask] = rows
    return out
