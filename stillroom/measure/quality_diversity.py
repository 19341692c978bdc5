"""Judges of an archive: how much of what is possible it holds, how well, and what one policy remembers of it."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import Module

from stillroom.parts.archive import Archive
from stillroom.parts.clusters import nearest
from stillroom.parts.episodes import Episodes, Task, told


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
    wanted, played = _asked(actor, archive, task, seed)
    return played.fitness, (played.descriptor - wanted.cpu()).norm(dim=1)


@torch.no_grad()
def shown(actor: Module, archive: Archive, task: Task, seed: int = 0) -> Archive:
    """An archive of the same cells, filled by what one policy does when it is asked for the descriptor of every elite: a cell
    counts if it was reached, whatever was asked. Its elites are empty."""
    wanted, played = _asked(actor, archive, task, seed)
    found = Archive(archive.centres.clone(), 0)
    found.add(wanted[:, :0], played.fitness.to(wanted), played.descriptor.to(wanted))
    return found


def _asked(actor: Module, archive: Archive, task: Task, seed: int) -> tuple[Tensor, Episodes]:
    """Descriptors of the elites, and an episode for each; the generator stays where it was."""
    wanted = archive.descriptor[archive.filled]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return wanted, task.play(partial(told, actor, wanted), len(wanted))


def chart(archive: Archive, most: float, side: int = 200) -> Tensor:
    """Fitness over two descriptors, the first to the right and the second upwards: a picture [1, 3, side, …], black at 0, through
    red, to yellow at `most`, white in empty cells. Beside it stands the scale."""
    at = (torch.arange(side) + 0.5) / side
    points = torch.stack(torch.meshgrid(1 - at, at, indexing="ij")[::-1], -1).flatten(0, 1)          # [pixels, 2]
    cell = nearest(points, archive.centres.cpu())[1]
    value = (archive.fitness.cpu()[cell] / most).view(side, side)
    scale = torch.cat([torch.full((side, side // 20), -torch.inf), (1 - at)[:, None].expand(-1, side // 10)], 1)
    value = torch.cat([value, scale], 1)
    hot = torch.stack([2 * value, 2 * value - 1, 0 * value.clamp(0, 1)]).clamp(0, 1)
    return torch.where(value.isfinite(), hot, 1.0)[None]
