"""How large a difference is: one number for a whole tensor, by several norms."""

import torch
import torch.nn.functional as F
from torch import Tensor

from stillroom.errors import Refused, nearest

NORMS = {
    "l2": Tensor.norm,
    "l1": lambda difference: difference.abs().sum(),
    "mse": lambda difference: difference.square().mean(),
    "smooth_l1": lambda difference: F.smooth_l1_loss(difference, torch.zeros_like(difference), beta=0.05),
}


def size(difference: Tensor, norm: str = "l2") -> Tensor:
    """√Σd² "l2", Σ|d| "l1", mean d² "mse", or mean of d²/0.1 where |d| < 0.05 and of |d| − 0.025 elsewhere "smooth_l1", over all
    that the tensor holds: a scalar. The first two grow with its size. Raises `Refused` for another name."""
    if norm not in NORMS:
        raise Refused(f"{norm!r} is none of {', '.join(NORMS)}", nearest(norm, NORMS))
    return NORMS[norm](difference)
