"""Batches of any indexable data set, in an order that is computed, not remembered."""

import random
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from itertools import islice, tee
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, default_collate


def batches(data, batch: int, *, start: int, count: int, seed: tuple, every: int = 1, workers: int = 0) -> Iterator[Any]:
    """`count` batches of `batch` samples from batch number `start` on, every `every`-th of them: a pass over the data is a
    permutation of it, computed from (seed, number of the pass); passes follow each other without a gap or a short batch."""
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        from stillroom.errors import Refused

        raise Refused("this data set has no length or cannot be indexed",
                      "give a map-style data set: an exact resume needs len() and [i]")
    known = getattr(data, "numbered", None) or (ids(data),)
    keys = (positions(len(data), batch, n, seed) for n in range(start, start + count * every, every))
    if isinstance(data, TensorDataset):
        return (_numbered(tuple(t[index] for t in data.tensors), known, index) for _, index in keys)
    keyed, again = tee(keys)
    drawn = ([(seed, p, i) for p, i in zip(at, index.tolist(), strict=True)] for at, index in keyed)
    content: Iterator[Any]
    if workers:
        content = iter(DataLoader(_Drawn(data), batch_sampler=list(drawn), num_workers=workers, persistent_workers=False))
    else:
        fetch = _Drawn(data)
        content = (default_collate([fetch[key] for key in keys]) for keys in drawn)
    return (_numbered(held, known, index) for held, (_, index) in zip(content, again, strict=False))


def ids(data) -> torch.Tensor:
    """Numbers of the samples in the data set that they come from, [samples]: what `data.ids` says, through `Subset`s, in a
    `ConcatDataset` above those of the sets before, or else their positions."""
    own = getattr(data, "ids", None)
    if own is not None:
        return torch.as_tensor(own)
    if isinstance(data, Subset):
        return ids(data.dataset)[torch.as_tensor(list(data.indices), dtype=torch.long)]
    if isinstance(data, ConcatDataset):
        return following(*data.datasets)
    return torch.arange(len(data))


def following(*sets) -> torch.Tensor:
    """Numbers of the samples of several data sets one after another, those of each above all that came before, [samples]."""
    parts, start = [], 0
    for data in sets:
        own = ids(data)
        parts.append(own + start)
        start += max(_source(data), int(own.max()) + 1 if len(own) else 0)
    return torch.cat(parts)


def _source(data) -> int:
    """How many samples there were before some were taken."""
    return _source(data.dataset) if isinstance(data, Subset) else len(data)


def _numbered(content: Any, known: tuple, index: torch.Tensor) -> Any:
    """The batch, tagged: a sample of several inputs says in `data.numbered` where each comes from, one entry an element."""
    if len(known) == 1:
        return tagged(content, known[0][index])
    for part, own in zip(content, known, strict=False):
        if own is not None:
            tagged(part, own[index])
    return content


def tagged(content: Any, index: torch.Tensor) -> Any:
    """The batch, whose first tensor now carries the numbers of its samples as `sample_ids` (Long, on the CPU): a stored
    teacher looks them up. Any operation on the tensor loses them."""
    held = content
    while isinstance(held, list | tuple | dict) and held:
        held = next(iter(held.values() if isinstance(held, dict) else held))
    if isinstance(held, torch.Tensor):
        held.sample_ids = index                          # type: ignore[attr-defined]
    return content


def joined(*parts: torch.Tensor) -> torch.Tensor:
    """Batches one after another, as `torch.cat` makes them; where all carry the numbers of their samples, so does the whole."""
    whole = torch.cat(parts)
    if all(hasattr(part, "sample_ids") for part in parts):
        tagged(whole, torch.cat([part.sample_ids for part in parts]))  # type: ignore[attr-defined]
    return whole


def positions(size: int, batch: int, number: int, seed: tuple) -> tuple[range, torch.Tensor]:
    """Positions of batch `number` in the endless stream of passes, and the samples that stand there."""
    at = range(number * batch, (number + 1) * batch)
    index, position = [], at.start
    while position < at.stop:
        turn, offset = divmod(position, size)
        index.append(_permutation(size, turn, seed)[offset : offset + at.stop - position])
        position += len(index[-1])
    return at, torch.cat(index)


@lru_cache(maxsize=8)
def _permutation(size: int, turn: int, seed: tuple) -> torch.Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(number(seed, turn)))


def number(*words) -> int:
    """63 bits that follow from the words."""
    return int.from_bytes(blake2b(repr(words).encode(), digest_size=8).digest(), "little") >> 1


class _Drawn(Dataset):
    """A data set whose own randomness follows from the sample's position in the stream, in whatever process it is drawn."""

    def __init__(self, data):
        self.data = data

    def __getitem__(self, key):
        seed, position, index = key
        drawn = number(seed, "sample", position)
        torch.default_generator.manual_seed(drawn)
        np.random.seed(drawn % 2**32)
        random.seed(drawn)
        return self.data[index]


def whole(data, limit: int | None = None):
    """All samples of a data set (or the first `limit`) as one batch of stacked tensors."""
    if isinstance(data, TensorDataset):
        return tuple(t[:limit] for t in data.tensors)
    return default_collate(list(islice((data[i] for i in range(len(data))), limit)))


def targets(data) -> torch.Tensor:
    """The classes of all samples of (x, y), [samples]; samples are read, one at a time, only where no data set tells."""
    if isinstance(data, TensorDataset):
        return data.tensors[1]
    if isinstance(data, Subset):
        return targets(data.dataset)[torch.as_tensor(list(data.indices), dtype=torch.long)]
    known = getattr(data, "targets", None)
    return torch.as_tensor(known if known is not None else [int(data[i][1]) for i in range(len(data))])


def to_device(content: Any, device: torch.device) -> Any:
    """Tensors of a batch on the device, whatever holds them."""
    if isinstance(content, torch.Tensor):
        moved = content.to(device, non_blocking=True)
        if hasattr(content, "sample_ids"):
            moved.sample_ids = content.sample_ids        # type: ignore[attr-defined]
        return moved
    if isinstance(content, dict):
        return {k: to_device(v, device) for k, v in content.items()}
    if isinstance(content, tuple) and hasattr(content, "_fields"):
        return type(content)(*(to_device(v, device) for v in content))
    if isinstance(content, list | tuple):
        return type(content)(to_device(v, device) for v in content)
    return content
