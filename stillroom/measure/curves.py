"""What curves of a training by rewards tell: does the length of answers collapse, does the reward dip before it rises?

Zheng et al. 2025 name and show both; the numbers, and the share that counts as early, are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Dip:
    """How far a curve falls below where it began, and the first step after its lowest at which it is back; None if never."""

    depth: float
    back: int | None


def collapse(lengths: Sequence[float], early: float = 0.1) -> float:
    """(L₀ − min L_k)/L₀ over the first `early` of the steps: 0 where the length never falls, 1 where nothing is left of it.

    lengths: mean length of the answers at each step, L₀ above 0; at least two steps are looked at.
    """
    last = max(1, round(early * (len(lengths) - 1)))
    return (lengths[0] - min(lengths[: last + 1])) / lengths[0]


def dip(rewards: Sequence[float]) -> Dip:
    """The blade of the hockey stick: R₀ − min R_k, and when R₀ is reached again."""
    lowest = min(range(len(rewards)), key=lambda k: rewards[k])
    back = next((k for k in range(lowest + 1, len(rewards)) if rewards[k] >= rewards[0]), None)
    return Dip(rewards[0] - rewards[lowest], 0 if lowest == 0 else back)


def growth(lengths: Sequence[float]) -> float:
    """Slope of the straight line through the last half of the curve, per step (least squares); of two values at least."""
    half = np.asarray(lengths[len(lengths) // 2 :], dtype=float)
    return float(np.polyfit(np.arange(len(half)), half, 1)[0])
