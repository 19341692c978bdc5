"""Policies that learn from rollouts: environments with an exact state, advantages, and the clipped losses of PPO.

A policy is a module `policy(obs [batch, size])` that returns a distribution over actions and its estimates of the returns,
[streams, batch], one for each stream of reward.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from stillroom.errors import Refused


class Envs:
    """Several gymnasium environments side by side, each reset when its episode ends.

    Their state is exact and holds no object of theirs: the seed of the episode and the actions since. It is restored by
    playing them again, so any environment that follows from seed and actions resumes bit for bit.

    make    name of a registered environment ("FrozenLake8x8-v1", "minigrid:MiniGrid-DoorKey-6x6-v0"), or a function that
            makes one. Observations are flattened to numbers; of a dictionary, what is no number (a text) is left out
    count   environments side by side
    seed    of all their episodes
    worlds  number of different episodes there are; 0: no two are the same

    Raises `Refused` when gymnasium is missing, the name is unknown, or actions or observations are not numbers.
    """

    def __init__(self, make: str | Callable[[], Any], count: int = 16, *, seed: int = 0, worlds: int = 0):
        gymnasium = _gymnasium()
        try:
            self.envs = [gymnasium.make(make) if isinstance(make, str) else make() for _ in range(count)]
        except (gymnasium.error.Error, ModuleNotFoundError) as error:
            known = "a name from `gymnasium.pprint_registry()`, after its package if it has one: minigrid:MiniGrid-Empty-5x5-v0"
            raise Refused(f"gymnasium cannot make {make!r}: {error}", known) from error
        space, actions = self.envs[0].observation_space, self.envs[0].action_space
        if not isinstance(actions, gymnasium.spaces.Discrete | gymnasium.spaces.Box):
            raise Refused(f"actions in {actions} are not supported", "an environment with Discrete or Box actions")
        self.fields = _numeric(space) if isinstance(space, gymnasium.spaces.Dict) else {"": space}
        if not self.fields or not all(map(_is_numeric, self.fields.values())):
            raise Refused(f"observations in {space} are not numbers", "wrap the environment so that it shows numbers")
        self.size = sum(map(gymnasium.spaces.flatdim, self.fields.values()))      # numbers in an observation
        self.discrete = isinstance(actions, gymnasium.spaces.Discrete)
        self.actions = int(actions.n) if self.discrete else int(np.prod(actions.shape))
        self.first = int(actions.start) if self.discrete else 0                    # the lowest action
        self.seed, self.worlds = seed, worlds
        self.episodes = [-1] * count                                  # number of the current one, by environment
        self.played: list[list[Any]] = [[] for _ in range(count)]     # actions since its reset
        self.returns = [0.0] * count                                  # reward since its reset
        self.finished: list[float] = []                               # returns of the episodes that ended since `rollout` began
        self.obs = torch.stack([self._reset(i) for i in range(count)])             # what is seen now, [envs, size]

    def __len__(self) -> int:
        return len(self.envs)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Act in every environment. action [envs] or [envs, numbers].

        Returns what is seen next [envs, size] (at an episode's end its last sight; `self.obs` is then that after the reset),
        rewards [envs], whether the episode ended [envs], and whether only time ran out [envs].
        """
        seen, rewards, ended, cut = [], [], [], []
        for i, act in enumerate(action.tolist()):
            obs, reward, terminated, truncated = self._step(i, act)
            seen.append(obs)
            rewards.append(reward)
            ended.append(terminated or truncated)
            cut.append(truncated and not terminated)
            if ended[-1]:
                self.finished.append(self.returns[i])
        after = torch.stack(seen)
        self.obs = torch.stack([self._reset(i) if over else obs for i, (obs, over) in enumerate(zip(seen, ended, strict=True))])
        return after, torch.tensor(rewards), torch.tensor(ended), torch.tensor(cut)

    def state_dict(self) -> dict[str, Any]:
        """Numbers of the episodes, actions since their resets, and what is seen now."""
        return {"episodes": list(self.episodes), "played": [list(actions) for actions in self.played], "obs": self.obs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Play it again. Raises `Refused` when the environments do not end where they were."""
        if len(state["episodes"]) != len(self):
            raise Refused(f"{len(state['episodes'])} environments were saved, here are {len(self)}", "use as many as before")
        seen = []
        for i, (episode, actions) in enumerate(zip(state["episodes"], state["played"], strict=True)):
            self.episodes[i] = episode - 1
            seen.append(self._reset(i))
            for act in actions:
                seen[i] = self._step(i, act)[0]
        self.obs = torch.stack(seen)
        if not torch.equal(self.obs, state["obs"]):
            raise Refused("the environments do not come back to where they were: their steps do not follow from seed and actions",
                          "start the run anew, or use an environment whose randomness comes from reset(seed=…)")

    def _reset(self, i: int) -> Tensor:
        self.episodes[i] += 1
        self.played[i], self.returns[i] = [], 0.0
        number = self.episodes[i] * len(self) + i
        digest = blake2b(f"{self.seed}/{number % self.worlds if self.worlds else number}".encode(), digest_size=4).digest()
        return self._seen(self.envs[i].reset(seed=int.from_bytes(digest, "little") >> 1)[0])

    def _step(self, i: int, act) -> tuple[Tensor, float, bool, bool]:
        self.played[i].append(act)
        space = self.envs[i].action_space
        if self.discrete:
            act = act + self.first
        else:
            act = np.asarray(act, space.dtype).reshape(space.shape).clip(space.low, space.high)
        obs, reward, terminated, truncated, _ = self.envs[i].step(act)
        self.returns[i] += float(reward)
        return self._seen(obs), float(reward), bool(terminated), bool(truncated)

    def _seen(self, obs) -> Tensor:
        flatten = _gymnasium().spaces.flatten
        numbers = [flatten(space, obs[name] if name else obs) for name, space in self.fields.items()]
        return torch.from_numpy(np.concatenate(numbers).astype(np.float32))


@dataclass
class Rollout:
    """What happened, `time` steps in `envs` environments."""

    obs: Tensor          # before acting [time, envs, size]
    action: Tensor       # [time, envs] or [time, envs, numbers]
    logp: Tensor         # of the action, nats [time, envs]
    value: Tensor        # what the policy expected, one more in time [streams, time + 1, envs]
    reward: Tensor       # of the environment [time, envs]
    done: Tensor         # 1 where the episode ended with this step [time, envs]
    rest: Tensor         # what was expected from there on where only time ran out, else 0 [streams, time, envs]
    next_obs: Tensor     # after acting, before any reset [time, envs, size]


@torch.no_grad()
def rollout(policy: Module, env: Envs, horizon: int) -> Rollout:
    """Play `horizon` steps in every environment, on the policy's device, actions drawn from the policy."""
    device = next(policy.parameters()).device
    env.finished = []
    columns: list[list[Tensor]] = [[] for _ in range(8)]
    for _ in range(horizon):
        obs = env.obs.to(device)
        chances, value = policy(obs)
        action = chances.sample()
        after, reward, done, cut = env.step(action.cpu())
        now = (obs, action, chances.log_prob(action), value, reward, done.float(), cut, after)
        for column, entry in zip(columns, now, strict=True):
            column.append(entry.to(device))
    obs, action, logp, value, reward, done, cut, after = (torch.stack(column) for column in columns)
    value = torch.cat([value, policy(env.obs.to(device))[1][None]]).transpose(0, 1)                 # [streams, time + 1, envs]
    rest = torch.zeros_like(value[:, :-1])
    if cut.any():
        rest[:, cut] = policy(after[cut])[1]
    return Rollout(obs, action, logp, value, reward, done, rest, after)


def advantage(reward: Tensor, value: Tensor, done: Tensor, gamma: float, trace: float = 0.95) -> Tensor:
    """Generalised advantage estimates [time, envs] (Schulman et al. 2016, eq. 16): Σ_l (γλ)^l δ_{t+l} with
    δ_t = r_t + γ·V_{t+1} − V_t, nothing carried over the end of an episode. With `done` 0 throughout the stream has no episodes.

    reward, done [time, envs], value [time + 1, envs]; trace is λ. Where time ran out add γ·rest to the reward.
    """
    gain, carried = torch.empty_like(reward), torch.zeros_like(reward[0])
    for t in reversed(range(len(reward))):
        going_on = gamma * (1 - done[t])
        carried = reward[t] + going_on * value[t + 1] - value[t] + trace * going_on * carried
        gain[t] = carried
    return gain


def minibatches(epochs: int, count: int, **fields: Tensor) -> Iterator[SimpleNamespace]:
    """Every sample once an epoch, in a new order, in `count` parts. fields [time, envs, …] → [time · envs / count, …]."""
    flat = {name: field.flatten(0, 1) for name, field in fields.items()}
    size = len(next(iter(flat.values())))
    for _ in range(epochs):
        for index in torch.randperm(size).chunk(count):
            yield SimpleNamespace(**{name: field[index.to(field.device)] for name, field in flat.items()})


def losses(policy: Module, part: SimpleNamespace, clip: float = 0.2, entropy: float = 0.01,
           value: float = 0.5) -> dict[str, Tensor]:
    """The terms of PPO (Schulman et al. 2017, eq. 7 and 9), each weighed, mean over samples: policy, value, entropy.

    part: obs, action, logp as played, gain (the advantage; here it gets mean 0 and deviation 1) [n], goal, the returns to be
    expected [n, streams]. clip is ε; entropy and value are weights, the latter of ½·(V − goal)² summed over streams.
    """
    chances, expected = policy(part.obs)
    gain = (part.gain - part.gain.mean()) / (part.gain.std() + 1e-8)
    ratio = (chances.log_prob(part.action) - part.logp).exp()
    least = torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain)
    return {"policy": -least.mean(), "value": value * 0.5 * (expected.T - part.goal).square().sum(1).mean(),
            "entropy": -entropy * chances.entropy().mean()}


def _gymnasium():
    try:
        import gymnasium
    except ModuleNotFoundError as error:
        raise Refused("gymnasium is not installed", "pip install 'stillroom[rl]'") from error
    return gymnasium


def _is_numeric(space) -> bool:
    try:
        _gymnasium().spaces.flatdim(space)
    except (NotImplementedError, ValueError):
        return False
    return True


def _numeric(space) -> dict[str, Any]:
    return {name: part for name, part in space.items() if _is_numeric(part)}
