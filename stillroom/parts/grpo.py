"""Policies that learn from rewards of whole answers, compared within the group that one prompt got (GRPO, Shao et al. 2024)."""

import torch
from torch import Tensor


def advantage(reward: Tensor, std: bool = True, eps: float = 1e-4) -> Tensor:
    """(r − mean)/(std + eps) over the answers to one prompt, [prompts, group]; without `std` r − mean (Liu et al. 2025)."""
    gain = reward - reward.mean(1, keepdim=True)
    return gain / (reward.std(1, keepdim=True) + eps) if std else gain


def ratio(logp: Tensor, old: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """π/π_old of each token, and the same between 1 − clip and 1 + clip."""
    free = (logp - old).exp()
    return free, free.clamp(1 - clip, 1 + clip)


def loss(logp: Tensor, old: Tensor, gain: Tensor, mask: Tensor, clip: float = 0.2) -> Tensor:
    """−mean of min(ρ·A, clip(ρ, 1 − ε, 1 + ε)·A) over all tokens of the batch, a scalar: no mean per answer (Yu et al. 2025).

    logp, old [rows, length]: of the tokens, now and when they were drawn, the latter without gradient. gain: A, [rows] or
    [rows, length]. mask [rows, length]: True at the answers' tokens. clip is ε.
    """
    free, bound = ratio(logp, old, clip)
    gain = gain[:, None] if gain.dim() == 1 else gain
    return -mean(torch.minimum(free * gain, bound * gain), mask)


def mean(x: Tensor, mask: Tensor) -> Tensor:
    """Over the tokens of the mask, all answers together."""
    return (x * mask).sum() / mask.sum().clamp(min=1)
