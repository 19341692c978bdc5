"""Samples in several views, each of which can be drawn again: its randomness follows from seed, sample and view alone."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from stillroom.batches import ids, number
from stillroom.errors import Refused
from stillroom.parts.losses.logits import UNLABELLED
from stillroom.parts.views import outside


class Views(Dataset):
    """`count` views of each sample of `data`: item i is sample i mod N in its view i // N, N samples.

    augment  an image → an image, drawing from the global generators of torch, numpy or random, such as `store.augment("flip")`;
             None leaves it as it is
    seed     of all views
    mixup    α: x becomes λ·x + (1 − λ)·another sample, λ ~ Beta(α, α) (Zhang et al. 2018)
    cutmix   α: a box of 1 − λ of the image's area comes from another sample, λ ~ Beta(α, α) (Yun et al. 2019). With both, each
             view is of one kind or the other, evenly

    A mixed sample has no label, it learns from the teacher alone (Beyer et al. 2022). 0: no mixing.

    A pass over it meets every view of every sample once. Order, workers and a stop change nothing in a view.
    """

    def __init__(self, data, augment: Callable[[Tensor], Tensor] | None = None, count: int = 1, seed: int = 0,
                 mixup: float = 0.0, cutmix: float = 0.0):
        if count < 1 or mixup < 0 or cutmix < 0:
            raise Refused(f"count={count}, mixup={mixup}, cutmix={cutmix}", "one view at least; weights α from 0")
        self.data, self.augment, self.count, self.seed, self.mixup, self.cutmix = data, augment, count, seed, mixup, cutmix
        self.known = ids(data)

    def __len__(self) -> int:
        return self.count * len(self.data)

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        view, place = divmod(i, len(self.data))
        seeded(number(self.seed, "view", int(self.known[place]), view))
        x, *rest = self.data[place]
        x = self.augment(x) if self.augment else x
        if not self.mixes:
            return (x, *rest)
        boxed = bool(self.cutmix) and (not self.mixup or bool(torch.rand(()) < 0.5))
        share = outside(x[None], self.cutmix)[0].to(x) if boxed else torch.distributions.Beta(self.mixup, self.mixup).sample()
        other = self.data[int(torch.randint(len(self.data), ()))][0]
        other = self.augment(other) if self.augment else other
        return share * x + (1 - share) * other, *(torch.tensor(UNLABELLED) for _ in rest[:1]), *rest[1:]

    @property
    def mixes(self) -> bool:
        """Whether a view is of two samples, and hence without a label."""
        return bool(self.mixup or self.cutmix)

    @property
    def targets(self) -> Tensor:
        """Labels [count · N]; none of mixed samples."""
        own = self.data.tensors[1] if isinstance(self.data, TensorDataset) else self.data.targets
        labels = torch.as_tensor(own).repeat(self.count)
        return torch.full_like(labels, UNLABELLED) if self.mixes else labels

    @property
    def classes(self) -> Any:
        """Names of the classes, where the data know them."""
        return getattr(self.data, "classes", None)

    @property
    def fingerprint(self) -> str:
        """Of the samples that are seen here, where the data know it."""
        return getattr(self.data, "fingerprint", "")


def seeded(seed: int) -> None:
    """All three global generators of the CPU at one seed."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
