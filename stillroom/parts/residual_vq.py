"""Vectors as a few words each: every codebook says what those before it left over (Zeghidour et al. 2021, algorithm 1)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module


class Quantised(NamedTuple):
    """total     sum of the code vectors, [batch, frames, dim]; its gradient goes to the vectors as if nothing were rounded
    first     the first code vector alone, likewise
    codes     numbers of the code vectors, [batch, quantisers, frames]
    left      what each quantiser was given, [quantisers, batch, frames, dim], without gradient
    commit    mean over quantisers of the mean square of what each was given less its code vector: pulls the vectors alone"""

    total: Tensor
    first: Tensor
    codes: Tensor
    left: Tensor
    commit: Tensor


class ResidualVQ(Module):
    """Vectors [batch, frames, dim] → `Quantised`, by `quantisers` codebooks of `codes` vectors.

    begin    code vectors by k-means on a first batch
    follow   code vectors become moving averages of what they stood for (van den Oord et al. 2017, appendix A.1)
    decay    of these averages
    least    vectors a batch, on a moving average, below which a code is dead and begins anew at a vector of the batch
    """

    def __init__(self, dim: int, codes: int = 1024, quantisers: int = 8, decay: float = 0.99, least: float = 2.0):
        super().__init__()
        self.decay, self.least = decay, least
        self.vectors = nn.Buffer(torch.randn(quantisers, codes, dim))
        self.used = nn.Buffer(torch.full((quantisers, codes), least))
        self.sums = nn.Buffer(self.vectors * least)

    def forward(self, x: Tensor, quantisers: int | None = None) -> Quantised:
        """quantisers: how many of them say something, all when left out."""
        rest, found, codes, commit = x.float(), [], [], []
        left = []
        for vectors in self.vectors[:quantisers]:
            left.append(rest.detach())
            codes.append(nearest(rest.detach(), vectors))
            found.append(F.embedding(codes[-1], vectors))
            commit.append(F.mse_loss(rest, found[-1]))
            rest = rest - found[-1]
        total, first = (x + (said - x).detach() for said in (torch.stack(found).sum(0), found[0]))
        return Quantised(total, first, torch.stack(codes, 1), torch.stack(left), torch.stack(commit).mean())

    def decode(self, codes: Tensor) -> Tensor:
        """The vectors that codes [batch, quantisers, frames] stand for; fewer quantisers give coarser ones."""
        said = [F.embedding(own, vectors) for own, vectors in zip(codes.unbind(1), self.vectors, strict=False)]
        return torch.stack(said).sum(0)

    @torch.no_grad()
    def begin(self, x: Tensor, steps: int = 10) -> None:
        """Begin each codebook at k-means of what is left of x [batch, frames, dim], `steps` of Lloyd's."""
        rest = x.detach().float().flatten(0, 1)                                               # [vectors, dim]
        for vectors in self.vectors:
            pick = torch.randperm(len(rest), device=rest.device)[torch.arange(len(vectors), device=rest.device) % len(rest)]
            vectors.copy_(rest[pick])
            for _ in range(steps):
                count, total = _gathered(rest, nearest(rest, vectors), len(vectors))
                vectors.copy_(torch.where(count[:, None] > 0, total / count.clamp(1)[:, None], vectors))
            rest = rest - vectors[nearest(rest, vectors)]
        self.used.fill_(self.least)
        self.sums.copy_(self.vectors * self.least)

    @torch.no_grad()
    def follow(self, said: Quantised, mean: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        """One step of the averages towards a batch. mean: over ranks, of which each sees its own part of it."""
        books = zip(self.vectors, self.used, self.sums, said.left, said.codes.unbind(1), strict=False)
        for vectors, used, sums, given, codes in books:
            given = given.flatten(0, -2)                                                       # [vectors, dim]
            count, total = _gathered(given, codes.flatten(), len(vectors))
            used.lerp_(mean(count), 1 - self.decay)
            sums.lerp_(mean(total), 1 - self.decay)
            drawn = mean(given[torch.randint(len(given), (len(vectors),), device=given.device)])
            dead = used < self.least
            used[dead] = self.least
            sums[dead] = drawn[dead] * self.least
            vectors.copy_(sums / used[:, None])


def nearest(x: Tensor, vectors: Tensor) -> Tensor:
    """Numbers of the nearest of `vectors` [codes, dim], [...]; x [..., dim]. In fp32."""
    with torch.autocast(x.device.type, enabled=False):
        return (vectors.square().sum(-1) - 2 * x.float() @ vectors.mT).argmin(-1)


def _gathered(x: Tensor, codes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """How many vectors each code has, [count], and their sums [count, dim]."""
    return (torch.zeros(count, device=x.device).index_add_(0, codes, torch.ones_like(codes, dtype=torch.float32)),
            torch.zeros(count, x.shape[-1], device=x.device).index_add_(0, codes, x))
