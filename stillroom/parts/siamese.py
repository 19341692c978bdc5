"""Differentiable siamese augmentation (Zhao & Bilen 2021, DSA): drawn once, applied as often as the same views are needed."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.errors import Refused, nearest

ALL = "color_crop_cutout_flip_scale_rotate"


@dataclass(frozen=True)
class Views:
    """Which augmentation, and the draws in [0, 1) for each sample, [batch, 3]."""

    kind: str
    u: Tensor


def draw(count: int, strategy: str, device: torch.device | str = "cpu") -> Views:
    """One kind out of a strategy such as "color_crop_flip" ("" for none), its strength for each of `count` samples.

    Raises `Refused` for an unknown kind.
    """
    kinds = strategy.split("_") if strategy else [""]
    for kind in kinds:
        if kind not in KINDS:
            raise Refused(f"augmentation {kind!r} is unknown", nearest(kind, KINDS))
    return Views(kinds[int(torch.randint(len(kinds), ()))], torch.rand(count, 3, device=device))


def augment(x: Tensor, views: Views) -> Tensor:
    """The views of x [batch, channels, height, width]; differentiable in x, the same for the same draws."""
    return KINDS[views.kind](x, views.u.to(x.dtype)[:, :, None, None, None])


def _color(x: Tensor, u: Tensor) -> Tensor:
    """Brightness + [−½, ½], saturation × [0, 2], contrast × [½, 1½]."""
    x = x + (u[:, 0] - 0.5)
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (2 * u[:, 1]) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (u[:, 2] + 0.5) + mean


def _crop(x: Tensor, u: Tensor) -> Tensor:
    """A shift of up to an eighth of the side, zeros coming in."""
    high, wide = x.shape[2:]
    far = max(1, round(wide / 8))
    down, right = (((2 * far + 1) * u[:, i, 0, 0]).long() for i in (0, 1))                     # [batch, 1]
    rows = down[:, :, None] + torch.arange(high, device=x.device)[:, None]                      # [batch, height, 1]
    columns = right[:, :, None] + torch.arange(wide, device=x.device)                           # [batch, 1, width]
    sample = torch.arange(len(x), device=x.device)[:, None, None]
    return F.pad(x, [far] * 4).permute(0, 2, 3, 1)[sample, rows, columns].permute(0, 3, 1, 2)


def _cutout(x: Tensor, u: Tensor) -> Tensor:
    """A square of half the side is zero."""
    gone = []
    for i, side in enumerate(x.shape[2:]):
        half = side // 2
        start = (u[:, i, 0, 0] * (side + 1 - half % 2)).long() - half // 2                      # [batch, 1]
        at = torch.arange(side, device=x.device)
        gone.append((at >= start) & (at < start + half))                                        # [batch, side]
    return x * ~(gone[0][:, None, :, None] & gone[1][:, None, None, :])


def _flip(x: Tensor, u: Tensor) -> Tensor:
    return torch.where(u[:, 0] < 0.5, x.flip(3), x)


def _scale(x: Tensor, u: Tensor) -> Tensor:
    """Each side by a factor of 1/1.2 to 1.2 of its own."""
    factor = u[:, :2, 0, 0, 0] * (1.2 - 1 / 1.2) + 1 / 1.2                                      # [batch, 2]
    return _affine(x, torch.diag_embed(factor))


def _rotate(x: Tensor, u: Tensor) -> Tensor:
    """By up to 15 degrees to either side."""
    angle = (u[:, 0, 0, 0, 0] - 0.5) * 2 * 15 / 180 * math.pi
    return _affine(x, torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(-1, 2, 2))


def _affine(x: Tensor, matrix: Tensor) -> Tensor:
    theta = F.pad(matrix, (0, 1)).to(x.dtype)                                                   # [batch, 2, 3]
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=True), align_corners=True)


KINDS = {"color": _color, "crop": _crop, "cutout": _cutout, "flip": _flip, "scale": _scale, "rotate": _rotate, "": lambda x, u: x}
