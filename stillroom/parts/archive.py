"""Quality diversity: an archive of the best policy for every behaviour, and how new ones are bred from it."""

import torch
from torch import Tensor, nn
from torch.nn import Module

from stillroom.parts.clusters import kmeans, nearest


def cells(count: int, dims: int, points: int = 50_000) -> Tensor:
    """Centres of a partition of [0, 1]^dims into cells of about one size, [count, dims]: a centroidal Voronoi tessellation, by
    k-means of points drawn evenly (Vassiliades et al. 2018)."""
    return kmeans(torch.rand(max(points, count), dims), count, 10)


def isoline(one: Tensor, other: Tensor, iso: float = 0.005, line: float = 0.05) -> Tensor:
    """Offspring x₁ + iso·N(0, I) + line·N(0, 1)·(x₂ − x₁) of two batches [batch, weights] (Vassiliades, Mouret 2018)."""
    return one + iso * torch.randn_like(one) + line * torch.randn_like(one[:, :1]) * (other - one)


def alike(reached: Tensor, asked: Tensor, length: float = 0.1) -> Tensor:
    """S(d, d') = exp(−‖d − d'‖ / L) of descriptors [batch, dims], [batch] (Faldor et al. 2023)."""
    return (-(reached - asked).norm(dim=-1) / length).exp()


class Archive(Module):
    """Of every cell the fittest policy that was seen in it (MAP-Elites, Mouret, Clune 2015).

    centres  of the cells [cells, dims], descriptors in [0, 1]
    weights  numbers of a policy

    `fitness` [cells] is −∞ where no policy was seen, `descriptor` [cells, dims] what the policy did, `elites` [cells, weights].
    """

    def __init__(self, centres: Tensor, weights: int):
        super().__init__()
        self.origin = {"spec": "part:archive", "sizes": [list(centres.shape)], "weights": weights}
        self.centres = nn.Buffer(centres)
        self.fitness = nn.Buffer(torch.full((len(centres),), -torch.inf, device=centres.device))
        self.descriptor = nn.Buffer(torch.zeros_like(centres))
        self.elites = nn.Buffer(torch.zeros(len(centres), weights, device=centres.device))

    @property
    def filled(self) -> Tensor:
        """Numbers of the cells in which a policy was seen."""
        return self.fitness.isfinite().nonzero().flatten()

    @torch.no_grad()
    def add(self, weights: Tensor, fitness: Tensor, descriptor: Tensor) -> Tensor:
        """Policies [batch, weights] with what they reached; each takes its cell if it is fitter than all others there, of equals
        the one that was there, or came first. Returns which did, [batch]."""
        cell, order = nearest(descriptor, self.centres)[1], torch.arange(len(fitness), device=fitness.device)
        best = self.fitness.scatter_reduce(0, cell, fitness, "amax")
        better = (fitness == best[cell]) & (fitness > self.fitness[cell])
        first = order.new_full((len(best),), len(order)).scatter_reduce(0, cell, order.masked_fill(~better, len(order)), "amin")
        added = first[cell] == order
        at = cell[added]
        self.fitness[at], self.descriptor[at], self.elites[at] = fitness[added], descriptor[added], weights[added]
        return added

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Elites drawn evenly, with replacement: weights [count, weights] and descriptors [count, dims]."""
        filled = self.filled
        drawn = filled[torch.randint(len(filled), (count,), device=filled.device)]
        return self.elites[drawn], self.descriptor[drawn]
