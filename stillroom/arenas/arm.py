"""An arm that can end anywhere, and to get there with little effort is the art: MuJoCo's Reacher, or a point on a plane."""

from functools import lru_cache
from importlib.util import find_spec

import numpy as np
import torch

from stillroom import _compat
from stillroom.arenas.cast import Cast
from stillroom.arenas.plane import judges, plane
from stillroom.models.policies import Critics, Steering
from stillroom.parts.episodes import Worlds

HORIZON = 50       # steps of an episode, one second
FORCE = 0.05       # of what the motors can do: with all of it the arm spins
REACH = 0.21       # metres from the shoulder to the tip
SIDE = 40          # worlds side by side


def body():
    """Reacher-v5 without its target, which it neither sees nor is paid for. It sees cosine, sine and speed of its two joints;
    reward of a step 1 − mean square of the forces, in shares of `FORCE`."""
    gymnasium = _compat.package("gymnasium")
    wrappers, box, scale = gymnasium.wrappers, gymnasium.spaces.Box, [1, 1, 1, 1, 0.2, 0.2]
    env = gymnasium.make("Reacher-v5", reward_dist_weight=0.0, reward_control_weight=1 / FORCE**2)
    env = wrappers.TransformAction(env, lambda force: FORCE * force, box(-1, 1, (2,)))
    env = wrappers.TransformObservation(env, lambda seen: seen[[0, 1, 2, 3, 6, 7]] * scale, box(-np.inf, np.inf, (6,)))
    return wrappers.TransformReward(env, lambda reward: 1 + reward / 2)


def tip(env, info: dict) -> tuple[float, float]:
    """Where the tip of the arm is now, in metres from the shoulder."""
    x, y, _ = env.unwrapped.data.body("fingertip").xpos
    return x, y


@lru_cache(maxsize=1)
def world() -> Worlds:
    """Arms side by side; the descriptor of an episode is where the tip ends, of the square around what it can reach."""
    return Worlds(body, tip, [-REACH, -REACH], [REACH, REACH], horizon=HORIZON, last=True, side=SIDE)


def arm(seed: int = 0) -> Cast:
    """Task, policy, actor and critic, with the judges of `arenas.plane`; its point where gymnasium or MuJoCo is missing. A fifth
    of the cells lies out of reach."""
    if not all(map(find_spec, ("gymnasium", "mujoco"))):
        return plane(seed)
    task = world()
    torch.manual_seed(5000 + seed)
    actors = {"task": task, "policy": Steering(task.size, task.actions, 32), "actor": Steering(task.size + 2, task.actions, 64),
              "critic": Critics(task.size + task.actions + 2, 64)}
    return Cast(actors, data="the arm of Reacher-v5, MuJoCo", real=True, **judges(task, HORIZON, seed))
