"""Subclasses that nobody named: how a teacher's embeddings vary within each class, beyond what its classifier reads."""

import torch
from torch import Tensor, nn
from torch.nn import Module

from stillroom.errors import Refused

FLAT = 1e-10      # a variance of this share of the largest is none


class Projections(Module):
    """Of every class: its centre μ [classes, dim], orthonormal directions V [classes, dim, subclasses], and the one deviation σ
    of its samples along them [classes]."""

    def __init__(self, centre: Tensor, axes: Tensor, spread: Tensor):
        super().__init__()
        self.centre, self.axes, self.spread = nn.Buffer(centre), nn.Buffer(axes), nn.Buffer(spread)

    def forward(self, h: Tensor) -> Tensor:
        """Embeddings h [batch, dim] → Vᵀ(h − μ)/σ, [batch, classes, subclasses]: each along the directions of every class."""
        along = torch.einsum("bd,cds->bcs", h, self.axes) - torch.einsum("cd,cds->cs", self.centre, self.axes)
        return along / self.spread[:, None]


def unread(weight: Tensor) -> Tensor:
    """I − W⁺W [dim, dim]: what it leaves of an embedding, the classifier W [classes, dim] does not see."""
    return torch.eye(weight.shape[1]).to(weight) - torch.linalg.pinv(weight) @ weight


def rotation(size: int) -> Tensor:
    """A rotation or reflection drawn evenly from O(size), float64 [size, size] (Mezzadri 2007: QR, the signs of R undone)."""
    q, r = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))
    return q * r.diagonal().sign()


def projections(h: Tensor, y: Tensor, classes: int, count: int, within: Tensor | None = None,
                chance: bool = False) -> Projections:
    """The `count` directions in which each class varies most, mixed by a random rotation, so that none of them rules.

    h       embeddings [samples, dim]; y their classes [samples]
    within  a projector [dim, dim], such as `unread`: directions lie in its range, so that it need not be applied to h again
    chance  directions drawn evenly, in place of the principal ones
    Computed in float64, kept in the type of h. Raises `Refused` where a class varies in fewer directions.
    """
    within = torch.eye(h.shape[1]).to(h) if within is None else within.to(h)
    found = []
    for c in range(classes):
        own = h[y == c].double() @ within.double()
        centre = own.mean(0)
        _, scale, axes = torch.linalg.svd(own - centre, full_matrices=False)                      # axes [min(samples, dim), dim]
        if not len(own) or int((scale.square() > FLAT * own.square().sum()).sum()) < count:
            raise Refused(f"class {c}, {len(own)} samples, varies in fewer than {count} of the directions that are looked at",
                          "fewer subclasses, more samples of this class, or null_space=False")
        if chance:
            axes = torch.linalg.qr(within.double() @ torch.randn(h.shape[1], count, dtype=torch.float64).to(h.device))[0].T
        axes = axes[:count].T @ rotation(count).to(h.device)                                      # V_c Q_c, [dim, subclasses]
        found.append((centre, axes, ((own - centre) @ axes).square().mean().sqrt()))
    return Projections(*(torch.stack(part).to(h.dtype) for part in zip(*found, strict=True)))
