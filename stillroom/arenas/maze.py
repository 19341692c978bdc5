"""Rooms behind closed doors: a real MiniGrid world whose reward lies in the last room, out of reach of luck."""

import copy
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import Module

from stillroom.arenas.cast import Cast
from stillroom.errors import Refused
from stillroom.models.policies import ActorCritic, gaze
from stillroom.parts import ppo
from stillroom.parts.stats import RunningMean
from stillroom.run import Run

ROOMS = 7         # behind each other, with as many doors less one; 20 steps for each of them make an episode
COUNT = 16        # environments side by side


def maze(seed: int = 0) -> Cast:
    """Policy, predictor, target and environments: one world for each seed, the same in every episode.

    success(policy)   share of the episodes, played as the policy would, that reach the goal, in percent
    learn(method)     what a method makes of the same actors: its policy, how many states it has seen, and the rank
                      correlation of its bonus with one over the number of visits

    Raises `Refused` when gymnasium or minigrid is missing.
    """
    return Cast(_actors(seed), data=f"MiniGrid-MultiRoom-N{ROOMS}-S5", success=lambda policy: _success(policy, seed),
                learn=lambda method: _learn(method, seed))


def _actors(seed: int) -> dict:
    env = ppo.Envs(world, COUNT, seed=seed, worlds=1)
    torch.manual_seed(4000 + seed)
    return {"policy": ActorCritic(env.size, env.actions), "predictor": gaze(env.size), "target": gaze(env.size), "env": env}


def world():
    """One environment. It shows where the agent is, whither it looks and what stands before it, as zeros and ones."""
    return _rooms()(minNumRooms=ROOMS, maxNumRooms=ROOMS, maxRoomSize=5)


@lru_cache(maxsize=1)
def _rooms() -> type:
    try:
        import gymnasium
        from minigrid.core.constants import OBJECT_TO_IDX, STATE_TO_IDX
        from minigrid.envs import MultiRoomEnv
    except ModuleNotFoundError as error:
        raise Refused(f"{error.name} is not installed", "pip install 'stillroom[rl]'") from error

    class Rooms(MultiRoomEnv):
        def __init__(self, **named):
            super().__init__(**named)
            self.sizes = (self.width, self.height, 4, len(OBJECT_TO_IDX), len(STATE_TO_IDX))
            self.observation_space = gymnasium.spaces.Box(0, 1, (sum(self.sizes),), np.float32)

        def gen_obs(self):
            ahead = self.grid.get(*self.front_pos)
            kind, _, state = ahead.encode() if ahead else (OBJECT_TO_IDX["empty"], 0, 0)
            numbers, start = np.zeros(sum(self.sizes), np.float32), 0
            for mark, size in zip((*self.agent_pos, self.agent_dir, kind, state), self.sizes, strict=True):
                numbers[start + int(mark)] = 1
                start += size
            return numbers

    return Rooms


@torch.no_grad()
def _success(policy: Module, seed: int, horizon: int = 60 * ROOMS) -> float:
    """Of at least three episodes in each environment, from the same draws for every policy."""
    policy = copy.deepcopy(policy).cpu().eval()
    env = ppo.Envs(world, COUNT, seed=seed, worlds=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ppo.rollout(policy, env, horizon)
    return 100 * sum(r > 0 for r in env.finished) / len(env.finished)


class Counted(ppo.Envs):
    """Environments that count how often each state was reached."""

    def __init__(self, *args, **named):
        self.visits: dict[bytes, int] = {}
        super().__init__(*args, **named)

    def step(self, action):
        after = super().step(action)
        for row in after[0]:
            key = row.numpy().tobytes()
            self.visits[key] = self.visits.get(key, 0) + 1
        return after


@lru_cache(maxsize=16)
def _learn(method, seed: int) -> SimpleNamespace:
    actors = _actors(seed)
    actors["env"] = env = Counted(world, COUNT, seed=seed, worlds=1)
    policy = method(Run(seed=seed, device="cpu"), **actors)
    return SimpleNamespace(policy=policy, seen=len(env.visits), order=_order(actors["predictor"], actors["target"], env.visits))


@torch.no_grad()
def _order(predictor: Module, target: Module, visits: dict[bytes, int]) -> float:
    """Spearman's rank correlation of the bonus with 1 / visits, over the states that were seen."""
    from scipy.stats import spearmanr

    states = torch.stack([torch.frombuffer(bytearray(key), dtype=torch.float32) for key in visits])
    counts = torch.tensor(list(visits.values()))
    scale = RunningMean(states.shape[1:])
    scale.update(states.repeat_interleave(counts, 0))
    look = scale.normalise(states, 5.0)
    bonus = (predictor(look) - target(look)).square().mean(-1)
    return float(spearmanr(bonus.numpy(), 1 / counts.numpy()).statistic)
