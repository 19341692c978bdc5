"""Which samples are worth keeping: scores, the highest of which are kept, and the choice itself. Each score takes

p         probabilities of several nets after a little training, [nets, samples, classes]
features  what their last layer reads, [nets, samples, width]
y         labels, [samples]
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Module

from stillroom.errors import Refused


def el2n(p: Tensor, _features: Tensor, y: Tensor) -> Tensor:
    """‖p − onehot‖₂, mean over nets, in [0, √2]: high where labels surprise (Paul et al. 2021, definition 2.3)."""
    return (p - F.one_hot(y, p.shape[-1])).norm(dim=-1).mean(0)


def grand(p: Tensor, features: Tensor, y: Tensor) -> Tensor:
    """‖p − onehot‖·‖(h, 1)‖, mean over nets: the norm of the cross-entropy's gradient in the last layer and its bias (Paul et al.
    2021, definition 2.1)."""
    return ((p - F.one_hot(y, p.shape[-1])).norm(dim=-1) * (features.square().sum(-1) + 1).sqrt()).mean(0)


def margin(p: Tensor, _features: Tensor, _y: Tensor) -> Tensor:
    """1 − the gap between the two likeliest classes, mean over nets, in [0, 1]: high where nets hesitate. No label is read."""
    first, second = p.topk(2).values.unbind(-1)
    return (1 - first + second).mean(0)


def moderate(_p: Tensor, features: Tensor, y: Tensor) -> Tensor:
    """−|d − median of d in the class|, mean over nets, d the distance to the class's mean: high where a sample is neither typical
    nor odd (Xia et al. 2023)."""
    score = torch.zeros(features.shape[:2])
    for c in y.unique():
        own = features[:, y == c]                                                    # [nets, of the class, width]
        d = (own - own.mean(1, keepdim=True)).norm(dim=-1)
        score[:, y == c] = -(d - d.median(1, keepdim=True).values).abs()
    return score.mean(0)


def herding(_p: Tensor, features: Tensor, y: Tensor) -> Tensor:
    """−the sample's place in its class when samples are taken so that their mean stays close to the class's (Welling 2009), by
    the features of all nets."""
    flat, score = features.transpose(0, 1).flatten(1), torch.zeros(len(y))           # [samples, nets·width]
    for c in y.unique():
        at = (y == c).nonzero().flatten()
        own, total = flat[at], torch.zeros_like(flat[0])
        left = torch.ones(len(at), dtype=torch.bool)
        for place in range(len(at)):
            away = (own.mean(0) - (total + own) / (place + 1)).norm(dim=-1)
            best = int(torch.where(left, away, torch.inf).argmin())
            total, left[best] = total + own[best], False
            score[at[best]] = -place
    return score


SCORES = {"el2n": el2n, "grand": grand, "margin": margin, "moderate": moderate, "herding": herding}


class Forgetting(Module):
    """How often each sample was said rightly, then wrongly again, while a net learnt (Toneva et al. 2019): `count` [samples]."""

    def __init__(self, samples: int):
        super().__init__()
        self.was = nn.Buffer(torch.zeros(samples, dtype=torch.bool))
        self.count = nn.Buffer(torch.zeros(samples))

    @torch.no_grad()
    def see(self, at: Tensor, right: Tensor) -> None:
        """The samples `at` [batch] come by, said rightly or not [batch]."""
        at = at.to(self.was.device)
        self.count[at] += (self.was[at] & ~right).float()
        self.was[at] = right


def keep(scores: Tensor, share: float, classes: Tensor | None = None) -> Tensor:
    """Numbers of the round(share · samples) highest scores, ascending; ties by order. `classes` [samples]: each class keeps its
    own highest, as evenly as the share allows. Raises `Refused`."""
    count = round(share * len(scores))
    if not 0 < share <= 1 or not count:
        raise Refused(f"a share of {share} of {len(scores)} samples", "above 0, and up to 1, so that one is left at least")
    order = scores.argsort(descending=True, stable=True)
    if classes is not None:                                  # by the place in the class, as a share of the class
        own = classes[order]
        place = torch.zeros(len(order))
        for c in own.unique():
            place[own == c] = (torch.arange(int((own == c).sum())) + 0.5) / int((own == c).sum())
        order = order[place.argsort(stable=True)]
    return order[:count].sort().values
