"""Vectors as a few words each: every codebook says what those before it left over (Zeghidour et al. 2021, algorithm 1)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Module

from stillroom.parts.codebook import Codebook, straight_through


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

    begin    code vectors by k-means on a first batch, of each codebook on what those before it leave
    follow   code vectors become moving averages of what they stood for
    decay    of these averages
    least    vectors a batch, on a moving average, below which a code is dead and begins anew at a vector of the batch
    """

    def __init__(self, dim: int, codes: int = 1024, quantisers: int = 8, decay: float = 0.99, least: float = 2.0):
        super().__init__()
        self.books: Any = nn.ModuleList(Codebook(codes, dim, decay=decay, least=least) for _ in range(quantisers))

    def forward(self, x: Tensor, quantisers: int | None = None) -> Quantised:
        """quantisers: how many of them say something, all when left out."""
        x = rest = x.float()
        found, codes, left, commit = [], [], [], []
        for book in self.books[:quantisers]:
            said = book(rest)
            left.append(rest.detach())
            found.append(said.value.detach())
            codes.append(said.code)
            commit.append(said.commit)
            rest = rest - found[-1]
        total, first = (straight_through(x, said) for said in (torch.stack(found).sum(0), found[0]))
        return Quantised(total, first, torch.stack(codes, 1), torch.stack(left), torch.stack(commit).mean())

    def decode(self, codes: Tensor) -> Tensor:
        """The vectors that codes [batch, quantisers, frames] stand for; fewer quantisers give coarser ones."""
        return torch.stack([book.codes[own] for own, book in zip(codes.unbind(1), self.books, strict=False)]).sum(0)

    @torch.no_grad()
    def begin(self, x: Tensor, rounds: int = 10) -> None:
        """Begin each codebook at k-means of what is left of x [batch, frames, dim]."""
        rest = x.float()
        for book in self.books:
            book.begin(rest, rounds)
            rest = rest - book(rest).value

    def follow(self, said: Quantised, mean: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        """One step of the averages towards a batch. mean: over ranks, of which each sees its own part of it."""
        for book, given, codes in zip(self.books, said.left, said.codes.unbind(1), strict=False):
            book.follow(given, codes, mean)
