"""Judges of forgetting: what is still known of the rest, what of the deleted, and what somebody could find out."""

import torch
from torch import Tensor


def auc(above: Tensor, below: Tensor) -> float:
    """How often a score of `above` is higher than one of `below`, in percent; ties count half. Scores [n] and [m]."""
    everything = torch.cat([above, below]).double()
    ranks, number = everything.unique(return_inverse=True)[1], len(above)
    count = torch.bincount(ranks).double()
    middle = count.cumsum(0) - (count - 1) / 2                  # mean rank among equals, from 1
    return 100 * float((middle[ranks[:number]].sum() - number * (number + 1) / 2) / (number * len(below)))


def members(scores: Tensor, known: Tensor, strange: Tensor) -> float:
    """Share of items that an attacker takes for training items of a network, in percent: those whose score is above the threshold
    that best tells items known to be trained on from strange ones (Yeom et al. 2018), both sides weighing alike.

    Scores that the network gives: of the items in question [n], of training items [m], of strange items of the same kind [k].
    """
    tried = torch.cat([known, strange]).unique()
    right = (known[:, None] >= tried).double().mean(0) + (strange[:, None] < tried).double().mean(0)
    return 100 * float((scores >= tried[right.argmax()]).double().mean())


def membership_ratio(before: float, after: float, items: int) -> float:
    """Success of the attack on the deleted items before unlearning over that afterwards (Cheng et al. 2023, GNNDelete): above 1
    where it fails more often. before, after: what `members` gave of two networks; an attack that never succeeds counts as if it
    had once, of so many items."""
    return before / max(after, 100 / items)


def score_distance(one: Tensor, other: Tensor) -> float:
    """Mean absolute difference of the probabilities that two networks give the same items, [n] each."""
    return float((one - other).abs().mean())
