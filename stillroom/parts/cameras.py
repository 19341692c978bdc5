"""Cameras that look along −z with y upwards, as in OpenGL and Blender: their rays, and where else they might have stood.

A pose [4, 4] maps camera to world; `focal` is in pixels; the optical axis goes through the middle of the image."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module

from stillroom.parts.memory import Hard


def rays(poses: Tensor, pixels: Tensor, focal: float, height: int, width: int) -> Tensor:
    """Rays [..., 6], origin and unit direction, through the middle of pixels [...] of poses [..., 4, 4]; pixels are counted row
    by row from the upper left."""
    right = (pixels % width + 0.5 - width / 2) / focal
    up = -(pixels // width + 0.5 - height / 2) / focal
    local = torch.stack([right, up, -torch.ones_like(right)], -1)[..., None]
    direction = F.normalize(_times(poses[..., :3, :3], local)[..., 0], dim=-1)
    return torch.cat([poses[..., :3, 3].expand_as(direction), direction], -1)


def orbit(poses: Tensor, count: int) -> Tensor:
    """So many random poses [count, 4, 4] that look at the origin from the part of the sphere where these [n, 4, 4] stand: any way
    round, evenly between the lowest and the highest, between the nearest and the farthest."""
    place = poses[:, :3, 3]
    radius = place.norm(dim=-1)
    height = place[:, 2] / radius                                               # sine of the elevation: even on the sphere
    turn, far, high = torch.rand(3, count, device=poses.device)
    far, high = (torch.lerp(of.min(), of.max(), share) for of, share in ((radius, far), (height, high)))
    flat = (1 - high.square()).clamp(min=0).sqrt()
    return looking(far[:, None] * torch.stack([flat * (2 * math.pi * turn).cos(), flat * (2 * math.pi * turn).sin(), high], 1))


def looking(place: Tensor) -> Tensor:
    """Poses [n, 4, 4] of cameras at these places [n, 3] that look at the origin with the world's z upwards."""
    back = F.normalize(place, dim=-1)
    right = F.normalize(torch.stack([-back[:, 1], back[:, 0], torch.zeros_like(back[:, 0])], 1), dim=-1)
    pose = torch.eye(4, device=place.device).repeat(len(place), 1, 1)
    pose[:, :3] = torch.stack([right, back.cross(right, dim=-1), back, place], -1)
    return pose


def turned(poses: Tensor, most: float) -> Tensor:
    """Poses [n, 4, 4] turned on their spot about the axes x, y, z of the world, by up to `most` radians each."""
    roll, pitch, yaw = (2 * torch.rand(3, len(poses), device=poses.device) - 1) * most
    turn = _times(_about(2, yaw), _times(_about(0, roll), _about(1, pitch)))
    pose = poses.clone()
    pose[:, :3, :3] = _times(turn, poses[:, :3, :3])
    return pose


def _times(one: Tensor, other: Tensor) -> Tensor:
    """The product of matrices, in full precision under autocast, too."""
    return (one[..., :, :, None] * other[..., None, :, :]).sum(-2)


def _about(axis: int, angle: Tensor) -> Tensor:
    """Rotations [n, 3, 3] about one axis."""
    one, other = (axis + 1) % 3, (axis + 2) % 3
    turn = torch.eye(3, device=angle.device).repeat(len(angle), 1, 1)
    turn[:, one, one] = turn[:, other, other] = angle.cos()
    turn[:, other, one] = angle.sin()
    turn[:, one, other] = -angle.sin()
    return turn


class Tour(Module):
    """A round of `count` views, each seen once; the next round comes back to hard ones, turned on their spot.

    size  places in the pool of hard views

    `pose` [count, 4, 4] are the views of this round, `error` [count] how wrong each was; −∞ where nobody looked.
    """

    def __init__(self, count: int, size: int, like: Tensor):
        super().__init__()
        self.pose = nn.Buffer(like[:1].repeat(count, 1, 1))
        self.error = nn.Buffer(torch.full((count,), -math.inf, device=like.device))
        self.pool = Hard(size, like)

    @torch.no_grad()
    def begin(self, fresh: Tensor, share: float, most: float) -> None:
        """The next round: these views [count, 4, 4], but for a share of hard ones turned by up to `most` radians. The hardest of
        the last round go into the pool."""
        count = min(int(share * len(fresh)), int(self.error.isfinite().sum()))
        hardest = self.pose[self.error.topk(count).indices]
        places = self.pool.draw(count)
        again = turned(self.pool.held[places], most)
        self.pool.put(hardest, places)
        self.pose.copy_(fresh)
        self.pose[torch.randperm(len(fresh), device=fresh.device)[: len(again)]] = again
        self.error.fill_(-math.inf)
