"""What a point and a direction in space look like to a network: waves, spherical harmonics, tables of features."""

import math

import torch
from torch import Tensor, nn
from torch.nn import Module

PRIMES = (1, 2654435761, 805459861)          # of the spatial hash, for x, y, z


def waves(x: Tensor, octaves: int) -> Tensor:
    """[…, 3] → […, 3 + 6·octaves]: the coordinates, then sines and cosines of 2^k times them (Mildenhall et al. 2020, eq. 4, in
    radians, without π)."""
    angle = x[..., None, :] * 2.0 ** torch.arange(octaves, device=x.device)[:, None]               # [..., octaves, 3]
    return torch.cat([x, torch.stack([angle.sin(), angle.cos()], -2).flatten(-3)], -1)


def harmonics(direction: Tensor, bands: int) -> Tensor:
    """Real spherical harmonics of unit vectors: […, 3] → […, bands²], up to four bands, orthonormal on the sphere."""
    x, y, z = direction.unbind(-1)
    c1, c2, c3 = math.sqrt(3 / 4 / math.pi), math.sqrt(15 / 4 / math.pi), math.sqrt(7 / 16 / math.pi)
    c31, c33 = math.sqrt(21 / 32 / math.pi), math.sqrt(35 / 32 / math.pi)
    known = [
        torch.full_like(x, math.sqrt(1 / 4 / math.pi)),
        -c1 * y, c1 * z, -c1 * x,
        c2 * x * y, -c2 * y * z, c2 / math.sqrt(12) * (3 * z * z - 1), -c2 * x * z, c2 / 2 * (x * x - y * y),
        -c33 * y * (3 * x * x - y * y), math.sqrt(105 / 4 / math.pi) * x * y * z, -c31 * y * (5 * z * z - 1),
        c3 * z * (5 * z * z - 3),
        -c31 * x * (5 * z * z - 1), math.sqrt(105 / 16 / math.pi) * z * (x * x - y * y), -c33 * x * (x * x - 3 * y * y)]
    return torch.stack(known[: bands**2], -1)


def spatial_hash(x: Tensor, y: Tensor, z: Tensor, size: int) -> Tensor:
    """Whole coordinates, broadcast together → entries of a table: (x·π₁ ⊕ y·π₂ ⊕ z·π₃) mod size, in 32 bits (Müller et al. 2022,
    eq. 4)."""
    x, y, z = (along * prime & 0xFFFFFFFF for along, prime in zip((x, y, z), PRIMES, strict=True))
    return (x ^ y ^ z) % size


class HashTable(Module):
    """Points [n, 3] in [−1, 1] → features [n, levels·width]: at every level those of the eight corners of the point's cell,
    interpolated. A level whose corners do not fit into the table shares its entries by a hash (Müller et al. 2022).

    levels    from `coarsest` to `finest` cells along an edge, in equal ratios
    entries   of a level at most
    """

    def __init__(self, levels: int = 14, width: int = 2, coarsest: int = 16, finest: int = 2048, entries: int = 2**19):
        super().__init__()
        ratio = (finest / coarsest) ** (1 / max(1, levels - 1))
        cells = [math.floor(coarsest * ratio**level + 1e-6) for level in range(levels)]
        sizes = [min(entries, (n + 1) ** 3) for n in cells]
        self.entries, self.width = entries, levels * width
        self.cells = nn.Buffer(torch.tensor(cells), persistent=False)
        self.begin = nn.Buffer(torch.tensor([0, *sizes[:-1]]).cumsum(0), persistent=False)
        self.table = nn.Parameter(torch.empty(sum(sizes), width).uniform_(-1e-4, 1e-4))

    def rows(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Rows of the table for corners of every level's cells, [n, levels, 2, 2, 2] from coordinates that broadcast to it."""
        along = (self.cells + 1)[:, None, None, None]
        dense = x + along * (y + along * z)
        return self.begin[:, None, None, None] + torch.where(along**3 <= self.entries, dense, spatial_hash(x, y, z, self.entries))

    def forward(self, x: Tensor) -> Tensor:
        place = (x[:, None] + 1) / 2 * self.cells[:, None]                                         # [n, levels, 3]
        low = torch.minimum(place.floor().long().clamp(min=0), self.cells[:, None] - 1)
        row = self.rows(*_corners(torch.stack([low, low + 1], 2)))
        one, two, three = _corners(torch.stack([low + 1 - place, place - low], 2))
        found = self.table.index_select(0, row.flatten()).unflatten(0, (*row.shape[:2], 8))        # its gradient is fast
        return (found * (one * two * three).flatten(2)[..., None]).sum(2).flatten(1)


def _corners(ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What lies at both ends of a cell along each axis, [n, levels, 2, 3], so that the three axes broadcast to its corners."""
    x, y, z = ends.unbind(-1)
    return x[..., :, None, None], y[..., None, :, None], z[..., None, None, :]
