"""A point on a plane that begins in a trap: it can end anywhere, and to get there with little effort is the art."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from stillroom.arenas.cast import Cast, variant
from stillroom.measure.quality_diversity import chart, coverage, qd_score, reproduced, shown
from stillroom.models.policies import Critics, Steering
from stillroom.parts.archive import Archive
from stillroom.parts.episodes import Act, Episodes, Task

HORIZON = 30       # steps of an episode


class Plane:
    """Positions in [−1, 1]², two forces in [−1, 1]. Reward of a step 1 − mean square of the forces; the descriptor is where the
    episode ends. Walls stand above and on both sides of the beginning: the way up leads down first. No step is random."""

    size, actions, dims = 4, 2, 2

    def play(self, act: Act, count: int) -> Episodes:
        """An episode of each policy, all at once."""
        rows, x, v = torch.arange(count), torch.zeros(count, 2), torch.zeros(count, 2)
        seen, done, rewards = [torch.cat([x, v], 1)], [], []
        for _ in range(HORIZON):
            done.append(act(seen[-1], rows))
            v = 0.8 * v + 0.012 * done[-1]
            x, v = moved(x, v)
            seen.append(torch.cat([x, 20 * v], 1))
            rewards.append(1 - done[-1].square().mean(1))
        obs, reward = torch.stack(seen, 1), torch.stack(rewards, 1)
        return Episodes(obs[:, :-1], torch.stack(done, 1), reward, obs[:, 1:], torch.zeros_like(reward), torch.ones_like(reward),
                        (x + 1) / 2)


def moved(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Positions and speeds [points, 2] after a step: a wall stops what would cross it, and so does the edge."""
    (left, low), (right, high) = x.T, (x + v).T
    sides = ((left - 0.3) * (right - 0.3) < 0) | ((left + 0.3) * (right + 0.3) < 0)
    sides = (sides & (low > -0.1) & (low < 0.2)) | (right.abs() > 1)
    right = torch.where(sides, left, right)
    above = ((low - 0.2) * (high - 0.2) < 0) & (right.abs() < 0.3) | (high.abs() > 1)
    high = torch.where(above, low, high)
    return torch.stack([right, high], 1), v.masked_fill(torch.stack([sides, above], 1), 0)


def plane(seed: int = 0) -> Cast:
    """Task, policy, actor and critic, with their `judges`."""
    torch.manual_seed(5000 + seed)
    task = Plane()
    actors = {"task": task, "policy": Steering(4, 2, 32), "actor": Steering(6, 2, 64), "critic": Critics(8, 64)}
    return Cast(actors, data="a point on a plane", real=False, **judges(task, HORIZON, seed))


def judges(task: Task, most: float, seed: int) -> dict[str, Any]:
    """Of what is made of a task whose fitness is `most` at most.

    numbers(archives)       by name the QD score, of the fitness that all cells together could have, and the cells filled, in %
    charts(archives)        by name a picture of the fitness over the descriptors
    shown(actor, archive)   the cells that the actor reaches, asked for every elite's descriptor, as an archive
    error(actor, archive)   mean distance of where the actor ends from where it was asked to, descriptors in [0, 1]
    other(**fields)         what the recipe's trial makes with these fields changed
    """
    return {"numbers": partial(_numbers, most=most), "shown": partial(shown, task=task),
            "charts": lambda archives: {who: chart(archive, most) for who, archive in archives.items()},
            "error": lambda actor, archive: reproduced(actor, archive, task)[1].mean().item(),
            "other": partial(variant, "dcg_map_elites", seed)}


def _numbers(archives: dict[str, Archive], most: float) -> dict[str, float]:
    scores = {who: 100 * qd_score(archive) / len(archive.fitness) / most for who, archive in archives.items()}
    return scores | {f"{who}: cells filled, %": coverage(archive) for who, archive in archives.items()}
