"""How it is weighed over time: functions of progress, which runs from 0 to 1 in every loop."""

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def constant(value: float, warmup: float = 0.0) -> Schedule:
    """`value` throughout, after a linear rise over the first share `warmup` of the loop."""
    return lambda progress: value * _rise(progress, warmup)


def cosine(start: float, end: float = 0.0, warmup: float = 0.0) -> Schedule:
    """Half a cosine from `start` to `end` (Loshchilov & Hutter 2017, eq. 5), after a linear rise over the share `warmup`."""
    def value(progress: float) -> float:
        if progress < warmup:
            return start * _rise(progress, warmup)
        return end + (start - end) * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2
    return value


def linear(start: float, end: float = 0.0, warmup: float = 0.0) -> Schedule:
    """A straight line from `start` to `end`, after a linear rise from 0 over the share `warmup`."""
    def value(progress: float) -> float:
        if progress < warmup:
            return start * _rise(progress, warmup)
        return start + (end - start) * (progress - warmup) / (1 - warmup)
    return value


def steps(start: float, *at: float, factor: float = 0.1) -> Schedule:
    """`start`, multiplied by `factor` at each share of the loop named in `at`."""
    return lambda progress: start * factor ** sum(progress >= share for share in at)


def _rise(progress: float, warmup: float) -> float:
    return min(1.0, progress / warmup) if warmup else 1.0
