"""Volume rendering: where a ray meets a box, which points along it are asked, and what is seen along it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Points(NamedTuple):
    """The points of rays that lie where something may be: n of them, ray by ray from the near to the far."""

    x: Tensor            # [n, 3]
    direction: Tensor    # [n, 3]
    asked: Tensor        # which of all samples these are, boolean [rays, samples]
    depth: Tensor        # of all samples, [rays, samples]
    step: Tensor         # length that a sample stands for, [rays, 1]


class Rendered(NamedTuple):
    colour: Tensor       # [rays, 3]
    depth: Tensor        # [rays], Σ w·t
    opacity: Tensor      # [rays], Σ w
    weight: Tensor       # [rays, samples]


class TruncExp(torch.autograd.Function):
    """exp whose gradient does not grow beyond e^12 (Instant-NGP's density)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].clamp(-12, 12).exp()


def trunc_exp(x: Tensor) -> Tensor:
    return TruncExp.apply(x)


def crossing(rays: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Where rays [n, 6] enter and leave the box [−bound, bound]³, [n] each and never behind the origin of the ray; equal where
    they miss it."""
    origin, direction = rays[:, :3], rays[:, 3:]
    direction = torch.where(direction.abs() < 1e-9, 1e-9, direction)
    walls = torch.stack([(-bound - origin) / direction, (bound - origin) / direction])          # [2, n, 3]
    near = walls.amin(0).amax(-1).clamp(min=0)
    return near, torch.maximum(walls.amax(0).amin(-1), near)


def sample(rays: Tensor, bound: float, occupied: Tensor, count: int, jitter: bool) -> Points:
    """`count` samples of each ray [n, 6] between the walls of the box, one in each equal part, at random there or in its middle;
    of them the points that lie in `occupied` cells (boolean [cells, cells, cells] over x, y, z) are to be asked."""
    near, far = crossing(rays, bound)
    step = ((far - near) / count)[:, None]
    at = torch.rand(len(rays), count, device=rays.device) if jitter else torch.full((len(rays), count), 0.5, device=rays.device)
    depth = near[:, None] + (torch.arange(count, device=rays.device) + at) * step
    x = rays[:, None, :3] + depth[..., None] * rays[:, None, 3:]                               # [rays, samples, 3]
    asked = within(x, bound, occupied) & (step > 0)
    return Points(x[asked], rays[:, None, 3:].expand_as(x)[asked], asked, depth, step)


def within(x: Tensor, bound: float, occupied: Tensor) -> Tensor:
    """Whether points […, 3] lie in occupied cells, boolean […]; outside the box they count as in its outermost cell."""
    cells = len(occupied)
    i, j, k = ((x / bound + 1) / 2 * cells).long().clamp(0, cells - 1).unbind(-1)
    return occupied[i, j, k]


def composite(points: Points, density: Tensor, colour: Tensor, background: float | Tensor = 1.0) -> Rendered:
    """What is seen along the rays (Mildenhall et al. 2020, eq. 3): w_i = T_i·(1 − exp(−σ_i·δ)), T_i = exp(−Σ_{j<i} σ_j·δ).

    density [n], colour [n, 3] of the points; background: one number, 1 for white, or colours [rays, 3].
    """
    thick = points.step * torch.zeros_like(points.depth).masked_scatter(points.asked, density.to(points.depth))
    weight = (thick - thick.cumsum(1)).exp() * -torch.expm1(-thick)
    opacity = weight.sum(1)
    ray = points.asked.nonzero()[:, 0]
    seen = weight.new_zeros(len(opacity), 3).index_add(0, ray, weight[points.asked][:, None] * colour.to(weight))
    return Rendered(seen + (1 - opacity)[:, None] * background, (weight * points.depth).sum(1), opacity, weight)


def heaviest(points: Points, seen: Rendered, share: float, opaque: float = 0.0) -> Tensor:
    """Which points are among the share of most weight of the points on their ray, boolean [n]; none of less opaque rays."""
    weight = seen.weight.detach().masked_fill(~points.asked, -1)
    rank = weight.argsort(1, descending=True).argsort(1)                                       # 0 is the heaviest
    heavy = (rank <= share * points.asked.sum(1, keepdim=True)) & (seen.opacity >= opaque)[:, None]
    return heavy[points.asked]
