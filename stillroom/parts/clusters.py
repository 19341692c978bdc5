"""Points and their nearest centres."""

import torch
from torch import Tensor

from stillroom.errors import Refused

CHUNK = 65_536     # points compared at a time


def nearest(x: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance to the nearest centre, and its number. x [..., points, dim], centres [..., count, dim] → [..., points]."""
    found, exact = [], torch.promote_types(torch.promote_types(x.dtype, centres.dtype), torch.float32)
    centres = centres.to(exact)
    for part in x.split(CHUNK, -2):
        part = part.to(exact)
        with torch.autocast(x.device.type, enabled=False):                               # rounded, many would be equally near
            close = part @ centres.mT - centres.square().sum(-1)[..., None, :] / 2       # ‖x‖² is the same for all centres
        best, own = close.max(-1)
        found.append(((part.square().sum(-1) - 2 * best).clamp(min=0), own))
    return torch.cat([far for far, _ in found], -1), torch.cat([own for _, own in found], -1)


@torch.no_grad()
def kmeans(x: Tensor, count: int, rounds: int = 25, centres: Tensor | None = None) -> Tensor:
    """Centres [..., count, dim] of points x [..., points, dim], by Lloyd's algorithm; leading dimensions are sets of their own.

    They begin as points drawn without replacement from torch's generator, or as the given ones. A centre that loses all its
    points moves to a point that is farthest from its own. Raises `Refused` where there are fewer points than centres.
    """
    if x.shape[-2] < count:
        raise Refused(f"{x.shape[-2]} points cannot have {count} centres", "fewer centres (lists, codewords), or more points")
    if centres is None:
        centres = x[..., torch.randperm(x.shape[-2])[:count].to(x.device), :]
    for _ in range(rounds):
        far, own = nearest(x, centres)
        sums = torch.zeros_like(centres).scatter_add_(-2, own[..., None].expand_as(x), x)
        sizes = torch.zeros_like(centres[..., 0]).scatter_add_(-1, own, torch.ones_like(far))[..., None]
        turn = ((sizes == 0).cumsum(-2) - 1).clamp(min=0)                                # the first empty one gets the farthest
        lost = far.topk(count).indices.gather(-1, turn[..., 0])
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), x.gather(-2, lost[..., None].expand_as(centres)))
    return centres
