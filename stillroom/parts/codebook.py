"""One codebook: vectors to the nearest of K codes and back, codes learnt by running means. Several make a residual one."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module

from stillroom.parts.clusters import kmeans


class Quantised(NamedTuple):
    """value: the nearest codes, with the gradient of x [..., dim]; code: their numbers [...]; commit: a scalar, not weighted."""

    value: Tensor
    code: Tensor
    commit: Tensor


class Codebook(Module):
    """K codes of `dim` numbers that follow what falls to them (van den Oord et al. 2017, appendix A.1).

    codes   their number, K
    cosine  vectors and codes are of unit length, the nearest is the one of largest cosine (Yu et al. 2022, sec. 3.2)
    decay   γ of the running means
    least   a code to which fewer vectors fall, by its running count, begins anew as one of the vectors at hand; 0: never

    In a step: `begin` once, `forward`, then `follow` where weights moved. A residual quantiser gives book after book what the
    books before have left: `rest = rest - book(rest).value.detach()`.
    """

    def __init__(self, codes: int, dim: int, *, cosine: bool = False, decay: float = 0.99, least: float = 0.0):
        super().__init__()
        self.cosine, self.decay, self.least = cosine, decay, least
        codebook = torch.randn(codes, dim)
        self.codes = nn.Buffer(F.normalize(codebook, dim=-1) if cosine else codebook)        # [codes, dim]
        self.count = nn.Buffer(torch.full((codes,), max(1.0, least)))                        # running, of vectors a step
        self.total = nn.Buffer(self.codes * max(1.0, least))                                 # running, of their sums

    def forward(self, x: Tensor) -> Quantised:
        """x [..., dim]. The gradient of `value` passes to x as it is; that of `commit` reaches x alone."""
        index = self.scores(x).argmax(-1)
        found = self.codes[index]
        commit = (self.scaled(x) - found).square().mean()
        return Quantised(straight_through(x, found), index, commit)

    def scores(self, x: Tensor) -> Tensor:
        """Likeness of vectors [..., dim] to every code, [..., codes]: the cosine, or minus the squared distance."""
        x = self.scaled(x)
        with torch.autocast(x.device.type, enabled=False):           # rounded, many codes would be equally near
            if self.cosine:
                return x @ self.codes.T
            return 2 * x @ self.codes.T - self.codes.square().sum(-1) - x.square().sum(-1, keepdim=True)

    def scaled(self, x: Tensor) -> Tensor:
        """Vectors as they are compared: in fp32, of unit length for cosines."""
        return F.normalize(x.float(), dim=-1) if self.cosine else x.float()

    @torch.no_grad()
    def begin(self, x: Tensor, rounds: int = 10) -> None:
        """Codes as the centres of vectors [..., dim] by k-means from vectors drawn at random; with them what is remembered.
        Fewer vectors than codes are codes themselves."""
        x, many = self.scaled(x).flatten(0, -2), len(self.codes)
        first = drawn(x, many)
        self.codes.copy_(self.scaled(first if len(x) <= many else kmeans(x, many, rounds, first)))
        self.count.fill_(max(1.0, self.least))
        self.total.copy_(self.codes * self.count[:, None])

    @torch.no_grad()
    def follow(self, x: Tensor, index: Tensor, mean: Callable[[Tensor], Tensor] = lambda t: t) -> None:
        """N ← γ·N + (1 − γ)·n, m ← γ·m + (1 − γ)·Σx, code = m / N, n vectors of sum Σx having fallen to it (eq. 6 to 8).

        x [..., dim], index [...] as `forward` gave it. A code to which none fell stays as it is. mean: over ranks, such as
        `run.mean`, so that all have the same codes; one that begins anew is then between a vector of each.
        """
        x, index = self.scaled(x).flatten(0, -2), index.flatten()
        n = mean(torch.bincount(index, minlength=len(self.codes)).to(x))                     # [codes]
        total = mean(torch.zeros_like(self.total).index_add_(0, index, x))
        self.count.lerp_(n, 1 - self.decay)
        self.total.lerp_(total, 1 - self.decay)
        moved = self.scaled(self.total / self.count[:, None])
        self.codes.copy_(torch.where(n[:, None] > 0, moved, self.codes))
        if self.least:
            dead, anew = (self.count < self.least)[:, None], mean(drawn(x, len(self.codes)))
            self.codes.copy_(torch.where(dead, self.scaled(anew), self.codes))
            self.total.copy_(torch.where(dead, self.codes * self.least, self.total))
            self.count.clamp_(min=self.least)


def straight_through(x: Tensor, found: Tensor) -> Tensor:
    """`found` as value, with the gradient of x (Bengio et al. 2013)."""
    return x + (found.to(x) - x).detach()


def drawn(x: Tensor, count: int) -> Tensor:
    """`count` of the vectors [n, dim] at random, each once as long as there are enough."""
    turns = -(-count // len(x))
    return x[torch.cat([torch.randperm(len(x), device=x.device) for _ in range(turns)])[:count]]


def usage(index: Tensor, codes: int) -> tuple[int, float]:
    """How many codes are used by `index` [...], and their perplexity: exp of the entropy of the shares, from 1 to `codes`."""
    share = torch.bincount(index.flatten(), minlength=codes).double() / index.numel()
    return int((share > 0).sum()), float(torch.special.entr(share).sum().exp())
