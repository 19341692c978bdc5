"""A point on a plane that begins in a trap: it can end anywhere, and to get there with little effort is the art."""

from functools import partial

import torch
from torch import Tensor

from stillroom.arenas.cast import Cast, variant
from stillroom.measure.quality_diversity import best, chart, coverage, qd_score, reproduced, shown
from stillroom.models.policies import Critics, Steering
from stillroom.parts.archive import Archive
from stillroom.parts.episodes import Act, Episodes

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
    """Task, policy, actor and critic.

    score(archive)          QD score: of the fitness that all cells together could have, in percent; 0 for an empty one
    coverage(archive)       cells that are filled, in percent
    best(archive)           largest fitness, in percent of the possible
    error(actor, archive)   mean distance of where the actor ends from where it was asked to, descriptors in [0, 1]
    one(actor, archive)     QD score of the cells that the actor reaches, asked for every elite's descriptor
    chart(archive)          picture of the fitness over the descriptors
    other(**fields)         what the recipe's trial makes with these fields changed
    """
    torch.manual_seed(5000 + seed)
    actors = {"task": Plane(), "policy": Steering(4, 2, 32), "actor": Steering(6, 2, 64), "critic": Critics(8, 64)}
    return Cast(actors, data="a point on a plane", real=False, score=_score, coverage=coverage, best=_best,
                error=_error, one=_one, chart=partial(chart, most=HORIZON), other=partial(variant, "dcg_map_elites", seed))


def _score(archive: Archive) -> float:
    return 100 * qd_score(archive) / len(archive.fitness) / HORIZON


def _best(archive: Archive) -> float:
    return 100 * best(archive) / HORIZON


def _error(actor: Steering, archive: Archive) -> float:
    return reproduced(actor, archive, Plane())[1].mean().item()


def _one(actor: Steering, archive: Archive) -> float:
    return _score(shown(actor, archive, Plane()))
