"""A cart that balances two poles, one on top of the other: MuJoCo's, or a point on a plane where gymnasium is not installed."""

from functools import lru_cache, partial
from importlib.util import find_spec

import torch

from stillroom.arenas.cast import Cast, variant
from stillroom.arenas.plane import plane
from stillroom.measure.quality_diversity import best, chart, coverage, qd_score, reproduced, shown
from stillroom.models.policies import Critics, Steering
from stillroom.parts.archive import Archive
from stillroom.parts.episodes import Worlds

HORIZON = 100      # steps of an episode, five seconds
MOST = 10.0        # reward of a step at most: 10, less what the poles move and lean
SIDE = 40          # worlds side by side


@lru_cache(maxsize=1)
def world() -> Worlds:
    """InvertedDoublePendulum-v5 as it is: an episode ends when the poles fall. Its descriptor: where the cart was, within 0.6 m of
    the middle, and how fast it went, up to 2 m/s, both on average. It remembers nothing of an episode, and is never copied."""
    return Worlds("InvertedDoublePendulum-v5", described, [-0.6, 0.0], [0.6, 2.0], horizon=HORIZON, side=SIDE)


def described(env, info: dict) -> tuple[float, float]:
    """Place and speed of the cart now."""
    data = env.unwrapped.data
    return data.qpos[0], abs(data.qvel[0])


def pendulum(seed: int = 0) -> Cast:
    """Task, policy, actor and critic; those of `arenas.plane` where gymnasium or MuJoCo is missing.

    score(archive)          QD score: of the fitness that all cells together could have, in percent; 0 for an empty one
    coverage(archive)       cells that are filled, in percent
    best(archive)           largest fitness, in percent of the possible
    error(actor, archive)   mean distance of what the actor did from what it was asked for, descriptors in [0, 1]
    one(actor, archive)     QD score of the cells that the actor reaches, asked for every elite's descriptor
    chart(archive)          picture of the fitness over the descriptors
    other(**fields)         what the recipe's trial makes with these fields changed
    """
    if not all(map(find_spec, ("gymnasium", "mujoco"))):
        return plane(seed)
    task = world()
    torch.manual_seed(5000 + seed)
    actors = {"task": task, "policy": Steering(task.size, task.actions, 32), "actor": Steering(task.size + 2, task.actions, 64),
              "critic": Critics(task.size + task.actions + 2, 64)}
    return Cast(actors, data="InvertedDoublePendulum-v5, MuJoCo", score=_score, coverage=coverage, best=_best, error=_error,
                one=_one, chart=partial(chart, most=MOST * HORIZON), other=partial(variant, "dcg_map_elites", seed))


def _score(archive: Archive) -> float:
    return 100 * qd_score(archive) / len(archive.fitness) / HORIZON / MOST


def _best(archive: Archive) -> float:
    return 100 * best(archive) / HORIZON / MOST


def _error(actor: Steering, archive: Archive) -> float:
    return reproduced(actor, archive, world())[1].mean().item()


def _one(actor: Steering, archive: Archive) -> float:
    return _score(shown(actor, archive, world()))
