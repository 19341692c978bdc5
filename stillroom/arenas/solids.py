"""Two spheres and two boxes, lit from one side: drawn by a formula, each pixel where its rays first meet a surface."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.parts import cameras

SPHERES = (((-0.4, 0.35, 0.1), 0.42, (0.85, 0.2, 0.15)),                    # centre, radius, paint
           ((0.4, -0.45, -0.2), 0.3, (0.15, 0.5, 0.85)))
BOXES = (((0.42, 0.35, 0.0), (0.28, 0.3, 0.5), (0.95, 0.75, 0.1)),          # centre, half edges, paint
         ((-0.4, -0.45, -0.2), (0.35, 0.28, 0.3), (0.2, 0.6, 0.25)))
BOUND = 0.9                     # half the edge of a box that holds them all
LIGHT = (0.4, -0.6, 0.7)


def photographs(count: int, side: int, seed: int, finer: int = 2) -> tuple[Tensor, Tensor, float]:
    """Images [count, side, side, 3] on white, camera poses [count, 4, 4] around the upper half of the scene, and the focal length
    in pixels; each pixel is the mean of `finer`² rays."""
    draw = torch.Generator().manual_seed(seed)
    turn, high = 2 * math.pi * torch.rand(count, generator=draw), 0.05 + 0.85 * torch.rand(count, generator=draw)
    flat = (1 - high.square()).sqrt()
    poses = cameras.looking(3.5 * torch.stack([flat * turn.cos(), flat * turn.sin(), high], 1))
    many = finer * side
    rays = cameras.rays(poses[:, None], torch.arange(many**2), 1.4 * many, many, many)
    images = torch.stack([seen(part).view(many, many, 3) for part in rays])
    return F.avg_pool2d(images.movedim(-1, 1), finer).movedim(1, -1).contiguous(), poses, 1.4 * side


def seen(rays: Tensor) -> Tensor:
    """Colours [n, 3] of what rays [n, 6] meet first: matt, chequered, and white where there is nothing."""
    origin, direction = rays[:, :3], rays[:, 3:]
    light = F.normalize(torch.tensor(LIGHT), dim=0)
    best, colour = torch.full((len(rays),), math.inf), torch.ones(len(rays), 3)
    for meet, solids in ((_sphere, SPHERES), (_box, BOXES)):
        for centre, size, paint in solids:
            far, normal = meet(origin - torch.tensor(centre), direction, torch.tensor(size))
            place = origin + far.nan_to_num(posinf=0.0)[:, None] * direction
            chequer = 1 - 0.3 * ((place + 1e-4) / 0.3).floor().sum(1, keepdim=True).remainder(2)
            shade = 0.35 + 0.65 * (normal @ light).clamp(min=0)
            nearer = far < best
            best = torch.where(nearer, far, best)
            colour = torch.where(nearer[:, None], torch.tensor(paint) * chequer * shade[:, None], colour)
    return colour


def _sphere(origin: Tensor, direction: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """How far a sphere around 0 is along the rays, ∞ where they miss it, [n], and its normal there [n, 3]."""
    middle = -(origin * direction).sum(1)
    inside = radius**2 - (origin + middle[:, None] * direction).square().sum(1)
    far = torch.where(inside > 0, middle - inside.clamp(min=0).sqrt(), math.inf)
    return far, (origin + far.nan_to_num(posinf=0.0)[:, None] * direction) / radius


def _box(origin: Tensor, direction: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """The same of a box around 0."""
    walls = torch.stack([(-half - origin) / direction, (half - origin) / direction])                       # [2, n, 3]
    near, axis = walls.amin(0).max(1)
    far = torch.where(near < walls.amax(0).amin(1), near, math.inf)
    return far, -F.one_hot(axis, 3) * direction.sign()
