"""Networks of one architecture and one ancestor, merged into one by their weights."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Module

from stillroom.errors import Refused


def balanced(alpha: float = 0.1, share: float = 0.5) -> tuple[float, float, float]:
    """Weights of (pretrained, instructed, distilled) of Balanced Actor Initialization (Zheng et al. 2025): the instructed network
    gets `share` (w) of the two that were taught, and the pretrained one `alpha` (α) of all. They sum to one."""
    for name, value in (("alpha", alpha), ("share", share)):
        if not 0 <= value <= 1:
            raise Refused(f"{name}={value}", "a share, from 0 to 1")
    return alpha, (1 - alpha) * share, (1 - alpha) * (1 - share)


@torch.no_grad()
def merged(parents: Sequence[Module], weights: Sequence[float]) -> Module:
    """A new network whose parameters and floating buffers are Σ wᵢ·θᵢ; everything else of it is the first parent's.

    It is computed as θₐ + Σ wᵢ(θᵢ − θₐ) from the parent a of the greatest weight: equal parents give themselves and a weight of
    one gives that parent, bit for bit. Tied weights stay tied. That the parents descend from one network cannot be seen here.
    Raises `Refused` where the weights do not sum to one, or names, ties or shapes differ.
    """
    if len(parents) != len(weights) or not parents or abs(sum(weights) - 1) > 1e-6:
        raise Refused(f"{len(parents)} networks cannot be merged by the weights {list(weights)}",
                      "one weight for each; they sum to 1")
    made, tensors = copy.deepcopy(parents[0]), [_tensors(net) for net in parents]
    for other in tensors[1:]:
        wrong = sorted(tensors[0].keys() ^ other.keys())
        wrong += [n for n, t in tensors[0].items() if n in other and t.shape != other[n].shape]
        if wrong:
            raise Refused(f"the networks differ in {len(wrong)} tensors: {', '.join(wrong[:3])}",
                          "merge networks of one architecture, one vocabulary and the same tied weights")
    anchor = max(range(len(weights)), key=lambda i: weights[i])
    for name, into in _tensors(made).items():
        kind = torch.promote_types(into.dtype, torch.float32)
        start = tensors[anchor][name].to(into.device, kind)
        rest = [w * (t[name].to(into.device, kind) - start) for i, (w, t) in enumerate(zip(weights, tensors, strict=True))
                if i != anchor and w]
        into.copy_(sum(rest, start))
    return made


def _tensors(net: Module) -> dict[str, Tensor]:
    """Parameters, each once whatever it is tied to, and buffers of floating numbers, by name."""
    return {name: t for name, t in (*net.named_parameters(), *net.named_buffers()) if t.is_floating_point()}
