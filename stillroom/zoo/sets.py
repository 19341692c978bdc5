"""Data sets that know what they are: `classes`, `shape`, `targets`, `fingerprint`, `words`."""

from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from stillroom.parts.losses.logits import UNLABELLED

SPLITS = {"train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid",
          "test": "test"}        # what a split may be called


class Arrays(TensorDataset):
    """Samples in memory: x [samples, …] in [0, 1], targets [samples] with `UNLABELLED` where there is no label."""

    def __init__(self, x: Tensor, targets: Tensor, classes: Sequence[str], name: str):
        super().__init__(x, targets)
        self.classes, self.name, self.left_out = list(classes), name, 0

    @property
    def targets(self) -> Tensor:
        return self.tensors[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(self.tensors[0].shape[1:])

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of every sample and label."""
        return _digest(self.classes, self.shape, *self.tensors)

    @property
    def words(self) -> str:
        """What the data are, in one line."""
        return _words(self, "images" if len(self.shape) == 3 else "samples")

    def take(self, index: Tensor) -> "Arrays":
        """Some of the samples, in that order."""
        return Arrays(self.tensors[0][index], self.targets[index], self.classes, self.name)

    def relabelled(self, targets: Tensor) -> "Arrays":
        """The same samples with other labels."""
        return Arrays(self.tensors[0], targets, self.classes, self.name)


class Lazy(Dataset):
    """Samples read when they are asked for. `read(i)` gives sample i of the source; `content` is a digest of all of it."""

    def __init__(self, read: Callable[[int], Any], targets: Tensor, classes: Sequence[str], name: str, shape: tuple[int, ...],
                 content: str, kind: str = "images", index: Tensor | None = None, left_out: int = 0):
        self.read, self.targets, self.classes, self.name, self.shape = read, targets, list(classes), name, shape
        self.content, self.kind, self.left_out = content, kind, left_out
        self.index = torch.arange(len(targets)) if index is None else index

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.read(int(self.index[i])), int(self.targets[i])

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest: of files their names, sizes, first and last 4 KiB; of everything else all of it."""
        return _digest(self.content, self.classes, self.shape, self.index, self.targets)

    @property
    def words(self) -> str:
        """What the data are, in one line."""
        return _words(self, self.kind)

    def take(self, index: Tensor) -> "Lazy":
        """Some of the samples, in that order."""
        return Lazy(self.read, self.targets[index], self.classes, self.name, self.shape, self.content, self.kind,
                    self.index[index])

    def relabelled(self, targets: Tensor) -> "Lazy":
        """The same samples with other labels."""
        return Lazy(self.read, targets, self.classes, self.name, self.shape, self.content, self.kind, self.index, self.left_out)


class Answered(Dataset):
    """Samples whose answer is no class but a mask, boxes or a text: `read(i)` gives (x, answer) of sample i of the source.
    `left_out` says what is missing from it, in words."""

    targets = None

    def __init__(self, read: Callable[[int], tuple[Any, Any]], count: int, classes: Sequence[str], name: str,
                 shape: tuple[int, ...], content: str, kind: str, index: Tensor | None = None, left_out: str = ""):
        self.read, self.classes, self.name, self.shape = read, list(classes), name, shape
        self.content, self.kind, self.left_out = content, kind, left_out
        self.index = torch.arange(count) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return self.read(int(self.index[i]))

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the source, and of which samples of it these are."""
        return _digest(self.content, self.classes, self.shape, self.index)

    @property
    def words(self) -> str:
        """What the data are, in one line."""
        known = f", {len(self.classes)} classes" if self.classes else ""
        left = f", {self.left_out}" if self.left_out else ""
        return f"{self.name}: {len(self):,} {self.kind} of {' × '.join(map(str, self.shape))}{known}{left}"

    def take(self, index: Tensor) -> "Answered":
        """Some of the samples, in that order."""
        return Answered(self.read, len(index), self.classes, self.name, self.shape, self.content, self.kind, self.index[index],
                        self.left_out)


Set = Arrays | Lazy | Answered
Given = dict[str, Callable[[], Set]]         # splits that data come with; {"all": …} when they come in one piece


def few_labels(data: Arrays | Lazy, labels: int, seed: int) -> Arrays | Lazy:
    """`labels` of the labels, evenly over the classes; the other samples stay without."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    each, more = divmod(labels, len(data.classes))
    kept = torch.cat([order[data.targets[order] == c][: each + (c < more)] for c in range(len(data.classes))])
    return data.relabelled(torch.full_like(data.targets, UNLABELLED).index_copy(0, kept, data.targets[kept]))


def noisy_labels(data: Arrays | Lazy, share: float, seed: int) -> Arrays | Lazy:
    """A `share` of the labels drawn evenly from the other classes."""
    draw, count = torch.Generator().manual_seed(seed), len(data.classes)
    wrong = (torch.rand(len(data), generator=draw) < share) & (data.targets != UNLABELLED)
    shifted = (data.targets + torch.randint(1, count, data.targets.shape, generator=draw)) % count
    return data.relabelled(torch.where(wrong, shifted, data.targets))


def cut(data: Set, shares: Sequence[float], seed: int) -> list[Set]:
    """The data cut into what is left and one part per share, evenly over the classes; samples without a label stay in the
    first part, unless none has one. A class with fewer than three samples stays whole."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.full((len(data),), UNLABELLED) if isinstance(data, Answered) else data.targets
    unlabelled = not (y != UNLABELLED).any()
    groups = [UNLABELLED] if unlabelled else sorted(set(y.tolist()) - {UNLABELLED})
    parts: list[list[Tensor]] = [[] for _ in range(len(shares) + 1)]
    if not unlabelled:
        parts[0].append((y == UNLABELLED).nonzero().flatten())
    for group in groups:
        members = (y == group).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=draw)]
        for number, share in enumerate(shares, 1):
            size = max(1, round(share * (y == group).sum().item())) if len(members) > 2 else 0
            parts[number].append(members[:size])
            members = members[size:]
        parts[0].append(members)
    return [data.take(torch.cat(part).sort().values) for part in parts]


def _words(data: Arrays | Lazy, kind: str) -> str:
    labelled = int((data.targets != UNLABELLED).sum())
    some = "" if labelled == len(data) else f", {labelled:,} labelled"
    known = f"{len(data.classes)} classes{some}" if labelled else "no labels"
    left = f", {data.left_out} corrupt left out" if data.left_out else ""
    shape = f" of {' × '.join(map(str, data.shape))}" if data.shape else ""
    return f"{data.name}: {len(data):,} {kind}{shape}, {known}{left}"


def _digest(*things: Any) -> str:
    digest = blake2b(digest_size=16)
    for thing in things:
        digest.update(thing.contiguous().numpy().tobytes() if isinstance(thing, Tensor) else repr(thing).encode())
    return digest.hexdigest()
