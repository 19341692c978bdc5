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

    def __deepcopy__(self, memo: dict) -> "Worlds":
        """Itself: every episode begins anew, so that a copy would play the same."""
        return self

    def play(self, act: Act, count: int) -> Episodes:
        """An episode of each policy; beginnings are drawn from torch's generator."""
        seeds = torch.randint(2**31, (count,)).tolist()
        parts = [self._play(act, rows, seeds) for rows in torch.arange(count).split(len(self.envs))]
        return Episodes(*(torch.cat([getattr(part, name) for part in parts]) for name in Episodes.__dataclass_fields__))

    def _play(self, act: Act, rows: Tensor, seeds: list[int]) -> Episodes:
        n, box = len(rows), self.envs[0].action_space
        seen = np.zeros((n, self.horizon + 1, self.size), np.float32)
        action, moments = torch.zeros(n, self.horizon, self.actions), np.zeros((n, self.horizon, self.dims), np.float32)
        reward, done, alive = (np.zeros((n, self.horizon), np.float32) for _ in range(3))
        for i, row in enumerate(rows.tolist()):
            seen[i, 0] = self.envs[i].reset(seed=seeds[row])[0].ravel()
        on = list(range(n))
        for t in range(self.horizon):
            action[on, t] = act(torch.from_numpy(seen[on, t]), rows[on])
            wanted = box.low + (action[:, t].numpy().reshape(n, *box.shape) + 1) / 2 * (box.high - box.low)
            over = set()
            for i in on:
                obs, reward[i, t], ended, cut, info = self.envs[i].step(wanted[i])
                seen[i, t + 1], done[i, t], alive[i, t] = obs.ravel(), ended, 1
                if ended or cut:
                    over.add(i)
                if not self.last or ended or cut or t == self.horizon - 1:
                    moments[i, t] = self.describe(self.envs[i], info)
            on = [i for i in on if i not in over]
            if not on:
                break
        moment = moments[np.arange(n), alive.sum(1, dtype=int) - 1] if self.last else moments.sum(1) / alive.sum(1)[:, None]
        descriptor = ((torch.from_numpy(moment) - self.low) / (self.high - self.low)).clamp(0, 1)
        made = {"obs": seen[:, :-1], "reward": reward, "next_obs": seen[:, 1:], "done": done, "alive": alive}
        return Episodes(action=action, descriptor=descriptor, **{name: torch.from_numpy(x) for name, x in made.items()})
