"""Whole episodes of many policies, with what they reached and how they behaved."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from stillroom import _compat
from stillroom.errors import Refused
from stillroom.parts.flat import each_call

Act = Callable[[Tensor, Tensor], Tensor]     # observations [rows, size], numbers of the policies [rows] → actions in [−1, 1]


@dataclass
class Episodes:
    """One episode of each policy, `time` steps at most."""

    obs: Tensor            # before acting [policies, time, size]
    action: Tensor         # in [−1, 1] [policies, time, numbers]
    reward: Tensor         # [policies, time]
    next_obs: Tensor       # after acting [policies, time, size]
    done: Tensor           # 1 where the episode ended with this step, and not because time ran out [policies, time]
    alive: Tensor          # 1 where the episode had not ended before this step [policies, time]
    descriptor: Tensor     # of the whole episode, in [0, 1] [policies, dims]

    @property
    def fitness(self) -> Tensor:
        """Sum of rewards, [policies]."""
        return (self.reward * self.alive).sum(1)

    def steps(self, asked: Tensor) -> dict[str, Tensor]:
        """Of all steps of the living, in order, [steps, …] by name: obs, action, reward, next_obs, done; the descriptor of the
        whole episode as `reached`, and as `asked` what is given here [policies, dims]."""
        found = {name: getattr(self, name) for name in ("obs", "action", "reward", "next_obs", "done")}
        for name, whole in (("reached", self.descriptor), ("asked", asked)):
            found[name] = whole[:, None].expand(-1, self.alive.shape[1], -1)
        return {name: x[self.alive.bool()] for name, x in found.items()}


def each(policy: Module, weights: Tensor, obs: Tensor, rows: Tensor) -> Tensor:
    """What the policies `rows` do, each with its own weights [policies, weights]; `partial(each, policy, weights)` is an `Act`.
    """
    return each_call(policy, weights[rows], obs.to(weights)).float().cpu()


def told(actor: Module, asked: Tensor, obs: Tensor, rows: Tensor) -> Tensor:
    """What one actor does in the episodes `rows`, told for each which descriptor is asked for [episodes, dims]."""
    return actor(torch.cat([obs.to(asked), asked[rows]], 1)).float().cpu()


class Task(Protocol):
    """What policies are asked to do. Nothing of one episode reaches into another: a run can stop between any two."""

    size: int              # numbers in an observation
    actions: int           # numbers in an action
    dims: int              # numbers in a descriptor

    def play(self, act: Act, count: int) -> Episodes:
        """An episode of each of `count` policies; what is random follows from torch's generator."""


class Worlds:
    """A gymnasium environment with continuous actions, played by many policies.

    make       name of a registered environment, or a function that makes one
    describe   environment and what its step said of it (`info`) → the descriptor of this moment
    low, high  bounds of the descriptor, which becomes [0, 1]
    horizon    steps of an episode at most
    last       the descriptor of an episode is that of its last moment; False: the mean of all its moments
    side       environments side by side

    Raises `Refused` when gymnasium is missing, or actions or observations are no boxes of numbers.
    """

    def __init__(self, make: str | Callable[[], Any], describe: Callable[[Any, dict], Sequence[float]], low: Sequence[float],
                 high: Sequence[float], *, horizon: int = 1000, last: bool = False, side: int = 16):
        gymnasium = _compat.package("gymnasium")
        self.envs = [gymnasium.make(make) if isinstance(make, str) else make() for _ in range(side)]
        space, actions = self.envs[0].observation_space, self.envs[0].action_space
        if not isinstance(space, gymnasium.spaces.Box) or not isinstance(actions, gymnasium.spaces.Box):
            raise Refused(f"observations in {space} and actions in {actions} are no boxes of numbers",
                          "an environment with continuous actions, such as HalfCheetah-v5")
        self.describe, self.low, self.high = describe, torch.tensor(low), torch.tensor(high)
        self.horizon, self.last = horizon, last
        self.size, self.actions, self.dims = int(np.prod(space.shape)), int(np.prod(actions.shape)), len(low)

    def play(self, act: Act, count: int) -> Episodes:
        """An episode of each policy; beginnings are drawn from torch's generator."""
        seeds = torch.randint(2**31, (count,)).tolist()
        parts = [self._play(act, rows, seeds) for rows in torch.arange(count).split(len(self.envs))]
        return Episodes(*(torch.cat([getattr(part, name) for part in parts]) for name in Episodes.__dataclass_fields__))

    def _play(self, act: Act, rows: Tensor, seeds: list[int]) -> Episodes:
        n, envs = len(rows), self.envs[: len(rows)]
        seen = torch.zeros(n, self.horizon + 1, self.size)
        action, moments = torch.zeros(n, self.horizon, self.actions), torch.zeros(n, self.horizon, self.dims)
        reward, done, alive = (torch.zeros(n, self.horizon) for _ in range(3))
        on = [True] * n
        for i, env in enumerate(envs):
            seen[i, 0] = torch.as_tensor(env.reset(seed=seeds[rows[i]])[0]).flatten()
        for t in range(self.horizon):
            action[:, t] = act(seen[:, t], rows)
            for i, env in enumerate(envs):
                if not on[i]:
                    continue
                box = env.action_space
                wanted = box.low + (action[i, t].numpy().reshape(box.shape) + 1) / 2 * (box.high - box.low)
                obs, reward[i, t], ended, cut, info = env.step(wanted.astype(box.dtype))
                seen[i, t + 1] = torch.as_tensor(obs).flatten()
                moments[i, t] = torch.as_tensor(self.describe(env, info))
                done[i, t], alive[i, t], on[i] = ended, 1, not (ended or cut)
            if not any(on):
                break
        length = alive.sum(1).long()
        found = moments[torch.arange(n), length - 1] if self.last else moments.sum(1) / length[:, None]
        descriptor = ((found - self.low) / (self.high - self.low)).clamp(0, 1)
        return Episodes(seen[:, :-1], action, reward, seen[:, 1:], done, alive, descriptor)
