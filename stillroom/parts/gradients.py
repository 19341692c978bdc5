"""What gradients say of each other."""

from collections.abc import Iterable

import torch
from torch import Tensor


def conflict(first: Tensor, second: Tensor, params: Iterable[Tensor]) -> Tensor:
    """Cosine between the gradients of two scalar losses in the same parameters: below 0 they pull against each other.

    The graph stays, so that the losses can still be descended. Parameters that a loss does not reach count as 0.
    """
    shared = [p for p in params if p.requires_grad]
    a, b = (torch.cat([g.flatten() for g in torch.autograd.grad(loss, shared, retain_graph=True, materialize_grads=True)])
            for loss in (first, second))
    return torch.nn.functional.cosine_similarity(a, b, dim=0)


def reverse(x: Tensor, scale: float = 1.0) -> Tensor:
    """`x` itself, whose gradient is turned around and multiplied by `scale` (Ganin & Lempitsky 2015, eq. 10 and 11); any shape.

    What learns after it descends a loss that what learns before it climbs. At −1 nothing is turned around.
    """
    return (1 + scale) * x.detach() - scale * x
