"""Judges of learning task after task, from a trace of accuracies (De Lange, van de Ven, Tuytelaars 2023).

A trace is [tasks, moments, exams], with an exam for every task in their order: while task k was learnt, trace[k, m, i] percent of
exam i were right at moment m. The last moment of a task is its end. No judge reads what was said of an exam before its turn.
"""

import torch
from torch import Tensor


def final(trace: Tensor) -> float:
    """Mean over tasks of the accuracy at the end of all (ACC), in percent."""
    return trace[-1, -1].mean().item()


def forgetting(trace: Tensor) -> float:
    """By how much a task's accuracy fell from its own end to the end of all, mean over the earlier tasks (FORG), in points."""
    return torch.stack([trace[i, -1, i] - trace[-1, -1, i] for i in _earlier(trace)]).mean().item()


def lowest(trace: Tensor) -> float:
    """The lowest accuracy after a task's own end, mean over the earlier tasks (min-ACC), in percent."""
    return torch.stack([after(trace, i)[1:].min() for i in _earlier(trace)]).mean().item()


def worst_case(trace: Tensor) -> float:
    """The last task's accuracy at its end and min-ACC of the others, weighed as tasks (WC-ACC), in percent."""
    return (trace[-1, -1, -1].item() + len(_earlier(trace)) * lowest(trace)) / len(trace)


def gap(trace: Tensor) -> float:
    """By how much the lowest lies below the end, mean over the earlier tasks, in points: what is lost and comes back."""
    return torch.stack([trace[-1, -1, i] - after(trace, i)[1:].min() for i in _earlier(trace)]).mean().item()


def windowed_forgetting(trace: Tensor, width: int = 10) -> float:
    """The deepest fall within `width` moments in a row from a task's own end on, mean over the earlier tasks (WF), in points."""
    return sum(_largest(-after(trace, i), width) for i in _earlier(trace)) / len(_earlier(trace))


def windowed_plasticity(trace: Tensor, width: int = 10) -> float:
    """The highest rise within `width` moments in a row since a task began, mean over tasks (WP), in points."""
    return sum(_largest(trace[i:, :, i].flatten(), width) for i in range(len(trace))) / len(trace)


def first_moments(trace: Tensor, moments: int = 10) -> float:
    """Mean accuracy over the first moments of a task, mean over tasks: the area under its learning curve (LCA), in percent."""
    return torch.stack([trace[i, :moments, i].mean() for i in range(len(trace))]).mean().item()


def after(trace: Tensor, task: int) -> Tensor:
    """Accuracies of a task from its own end on, the end first, [moments]."""
    return torch.cat([trace[task, -1:, task], trace[task + 1 :, :, task].flatten()])


def _earlier(trace: Tensor) -> range:
    return range(len(trace) - 1)


def _largest(values: Tensor, width: int) -> float:
    """The largest rise from one to a later of `width` values in a row; 0 where nothing rises."""
    rises = [(values[late:] - values[:-late]).max() for late in range(1, min(width, len(values)))]
    return max(0.0, *(r.item() for r in rises)) if rises else 0.0
