"""Radiance fields of four architectures with one seam: block 1 turns a place into a density and features, block 2 turns features
and the direction of view into a colour. Any can teach any other."""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module

from stillroom.models.encodings import HashTable, harmonics, waves
from stillroom.parts.rendering import composite, sample, trunc_exp

GEOMETRY = 15        # features beside the density


class Seen(NamedTuple):
    """What a field says of points: `logit` [n] is the density's logarithm; `features` [n, 16], `logit` among them, are None where
    the architecture has none that another could learn."""

    features: Tensor | None
    logit: Tensor
    colour: Tensor       # [n, 3] in [0, 1]

    def clamped(self, low: float, high: float) -> "Seen":
        """What block 1 says, kept in this range: beyond it space is as good as empty, or opaque."""
        return Seen(None if self.features is None else self.features.clamp(low, high), self.logit.clamp(low, high), self.colour)


class Field(Module):
    """Points [n, 3] and unit directions [n, 3] → `Seen`.

    block1    places in [−1, 1] → [n, 1 + …], the logit first
    block2    the rest and directions → logits of the colour [n, 3]
    bound     half the edge of the box around the origin in which the scene lies
    cells     along an edge of `occupied`, which says where there is something to see; all of it at first
    shared    whether what block 1 says means the same in other architectures
    slow      beginnings of the names of parameters that learn at a tenth of the rate
    """

    def __init__(self, block1: Module, block2: Module, bound: float, cells: int, shared: bool = True, slow: tuple[str, ...] = ()):
        super().__init__()
        self.block1, self.block2, self.bound, self.shared, self.slow = block1, block2, bound, shared, slow
        self.occupied: Tensor = nn.Buffer(torch.ones(cells, cells, cells, dtype=torch.bool))

    def paces(self) -> dict[Tensor, float]:
        """The share of a learning rate of every parameter that does not get all of it."""
        return {p: 0.1 for name, p in self.named_parameters() if name.startswith(self.slow)}

    def forward(self, x: Tensor, direction: Tensor) -> Seen:
        said = self.block1(x / self.bound).float()
        colour = self.block2(said[:, 1:], direction).float().sigmoid()
        return Seen(said if self.shared else None, said[:, 0], colour)

    @torch.no_grad()
    def render(self, rays: Tensor, samples: int, background: float = 1.0, at_once: int = 2**14) -> Tensor:
        """Colours [rays, 3] along rays [rays, 6]."""
        seen = []
        for part in rays.split(at_once):
            points = sample(part, self.bound, self.occupied, samples, jitter=False)
            said = self(points.x, points.direction)
            seen.append(composite(points, trunc_exp(said.logit), said.colour, background).colour)
        return torch.cat(seen)

    @torch.no_grad()
    def prune(self, least: float = 0.05, tries: int = 2) -> None:
        """Of the occupied cells keep those in which one of `tries` random points stops more than the share `least` of the light
        that goes through a cell, and all next to them."""
        cells, here = len(self.occupied), self.occupied.nonzero()
        kept = torch.zeros(1, cells, cells, cells, device=here.device)
        for _ in range(tries):
            x = (here + torch.rand(here.shape, device=here.device)) / cells * 2 - 1
            logit = torch.cat([self.block1(part).float()[:, 0] for part in x.split(2**14)])
            kept[0][tuple(here[logit.exp() * 2 * self.bound / cells > -math.log(1 - least)].T)] = 1
        self.occupied.copy_(F.max_pool3d(kept, 3, 1, 1)[0] > 0)


class Shader(Module):
    """Block 2 of all that have features: a small network on them and the harmonics of the direction."""

    def __init__(self, width: int = 64, layers: int = 3, bands: int = 4):
        super().__init__()
        self.bands, self.net = bands, _dense(bands**2 + GEOMETRY, width, 3, layers)

    def forward(self, features: Tensor, direction: Tensor) -> Tensor:
        return self.net(torch.cat([harmonics(direction, self.bands), features], 1))


class Harmonic(Module):
    """Block 2 without a network: what block 1 says are coefficients of spherical harmonics, one set a colour."""

    def __init__(self, bands: int):
        super().__init__()
        self.bands = bands

    def forward(self, coefficients: Tensor, direction: Tensor) -> Tensor:
        return (coefficients.unflatten(1, (3, -1)) * harmonics(direction, self.bands)[:, None]).sum(-1)


class Perceptron(Module):
    """Waves of the place through a deep network, which sees them once more half-way (Mildenhall et al. 2020)."""

    def __init__(self, octaves: int, depth: int, width: int, out: int):
        super().__init__()
        self.octaves, first = octaves, 3 + 6 * octaves
        self.begin = _dense(first, width, width, depth // 2, bias=True)
        self.end = _dense(width + first, width, out, depth - depth // 2, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        seen = waves(x, self.octaves)
        return self.end(torch.cat([seen, self.begin(seen).relu()], 1))


class Planes(Module):
    """A volume as a sum of products of planes and lines (TensoRF-VM, Chen et al. 2022, eq. 4): the first `rank` components sum up
    to the logit, the others are mixed into features."""

    def __init__(self, cells: int, rank: int, rank_colour: int):
        super().__init__()
        self.rank = rank
        self.planes = nn.Parameter(0.1 * torch.randn(3, rank + rank_colour, cells, cells))     # over (x, y), (x, z), (y, z)
        self.lines = nn.Parameter(0.1 * torch.randn(3, rank + rank_colour, cells, 1))          # along z, y, x
        self.mix = nn.Linear(3 * rank_colour, GEOMETRY, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        over = torch.stack([x[:, [0, 1]], x[:, [0, 2]], x[:, [1, 2]]])[:, :, None]             # [3, n, 1, 2]
        along = torch.stack([x[:, [2]], x[:, [1]], x[:, [0]]])[:, :, None]
        along = torch.cat([torch.zeros_like(along), along], -1)
        product = (_at(self.planes, over) * _at(self.lines, along))[..., 0]                    # [3, components, n]
        return torch.cat([product[:, : self.rank].sum((0, 1))[:, None], self.mix(product[:, self.rank :].flatten(0, 1).T)], 1)


class Volume(Module):
    """What lies in the cells of a volume, interpolated (Plenoxels, Fridovich-Keil, Yu et al. 2022)."""

    def __init__(self, cells: int, width: int):
        super().__init__()
        self.cells = nn.Parameter(0.02 * torch.randn(1, width, cells, cells, cells))

    def forward(self, x: Tensor) -> Tensor:
        return _at(self.cells, x[None, :, None, None])[0, :, :, 0, 0].T


# --- the four, by name -----------------------------------------------------------------------------------------------

def mlp(octaves: int = 10, depth: int = 8, width: int = 256, hidden: int = 64, bound: float = 1.0, grid: int = 128) -> Field:
    """NeRF: everything in the weights of a deep network."""
    block1 = nn.Sequential(Perceptron(octaves, depth, width, 28), _dense(28, hidden, 1 + GEOMETRY, 2))
    return Field(block1, Shader(hidden), bound, grid, slow=("block",))


def table(levels: int = 14, coarsest: int = 16, finest: int = 2048, entries: int = 2**19, hidden: int = 64, bound: float = 1.0,
          grid: int = 128) -> Field:
    """Instant-NGP: hash tables of several resolutions, and a small network."""
    encoding = HashTable(levels, 2, coarsest, finest, entries)
    return Field(nn.Sequential(encoding, _dense(encoding.width, hidden, 1 + GEOMETRY, 2)), Shader(hidden), bound, grid)


def planes(cells: int = 300, rank: int = 16, rank_colour: int = 48, hidden: int = 64, bound: float = 1.0,
           grid: int = 128) -> Field:
    """TensoRF: a volume in low rank, and a small network for the colour."""
    return Field(Planes(cells, rank, rank_colour), Shader(hidden), bound, grid, slow=("block1.mix", "block2"))


def volume(cells: int = 128, bands: int = 3, bound: float = 1.0, grid: int = 128) -> Field:
    """Plenoxels: a volume of densities and spherical harmonics, without any network."""
    return Field(Volume(cells, 1 + 3 * bands**2), Harmonic(bands), bound, grid, shared=False)


def _dense(first: int, width: int, last: int, layers: int, bias: bool = False) -> nn.Sequential:
    sizes, net = [first, *[width] * (layers - 1), last], []
    for a, b in pairwise(sizes):
        net += [nn.Linear(a, b, bias=bias), nn.ReLU()]
    return nn.Sequential(*net[:-1])


def _at(grid: Tensor, place: Tensor) -> Tensor:
    """Values at places in [−1, 1], whose first coordinate runs along the last axis; −1 and 1 are the centres of the last."""
    return F.grid_sample(grid, place, align_corners=True)
