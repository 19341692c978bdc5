"""Judges of an archive: how much of what is possible it holds, how well, and what one policy remembers of it."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import Module

from stillroom.parts.archive import Archive
from stillroom.parts.episodes import Task, told


def qd_score(archive: Archive, least: float = 0.0) -> float:
    """Sum of fitness − least over the filled cells; `least`: the lowest fitness there is, so that none counts below 0."""
    return (archive.fitness[archive.filled] - least).sum().item()


def coverage(archive: Archive) -> float:
    """Share of the cells that are filled, in percent."""
    return 100 * len(archive.filled) / len(archive.fitness)


def best(archive: Archive) -> float:
    """The largest fitness."""
    return archive.fitness.max().item()


@torch.no_grad()
def reproduced(actor: Module, archive: Archive, task: Task, seed: int = 0) -> tuple[Tensor, Tensor]:
    """One policy asked for the descriptor of every elite (Faldor et al. 2023, reproducibility): its fitness, and the distance of
    what it did from what was asked, [filled cells] each. actor: observation and descriptor [rows, size + dims] → action."""
    wanted = archive.descriptor[archive.filled]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        played = task.play(partial(told, actor, wanted), len(wanted))
    return played.fitness, (played.descriptor - wanted.cpu()).norm(dim=1)


@torch.no_grad()
def shown(actor: Module, archive: Archive, task: Task) -> Archive:
    """An archive of the same cells, filled by what one policy does when it is asked for the descriptor of every elite: a cell
    counts if it was reached, whatever was asked. Its elites are empty."""
    wanted = archive.descriptor[archive.filled]
    played = task.play(partial(told, actor, wanted), len(wanted))
    found = Archive(archive.centres.clone(), 0)
    found.add(wanted[:, :0], played.fitness.to(wanted), played.descriptor.to(wanted))
    return found
