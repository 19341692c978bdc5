"""Twin critics and a policy without chance (TD3, Fujimoto, van Hoof, Meger 2018), both told what is asked of them."""

import torch
from torch import Tensor
from torch.nn import Module


@torch.no_grad()
def target(critic: Module, actor: Module, reward: Tensor, done: Tensor, next_obs: Tensor, asked: Tensor, gamma: float = 0.99,
           noise: float = 0.2, limit: float = 0.5) -> Tensor:
    """r + γ·(1 − done)·min_i Q_i(s', a'), [batch], with a' the actor's action and clipped noise, cut to [−1, 1] (algorithm 1).

    critic: obs, action and asked side by side → [2, batch]; actor: obs and asked → [batch, actions]; both the slow copies.
    reward, done [batch], next_obs [batch, size], asked [batch, dims]; noise is the deviation, limit its bound.
    """
    action = actor(torch.cat([next_obs, asked], 1))
    action = (action + (noise * torch.randn_like(action)).clamp(-limit, limit)).clamp(-1, 1)
    return reward + gamma * (1 - done) * critic(torch.cat([next_obs, action, asked], 1)).amin(0)


def regret(critic: Module, actor: Module, obs: Tensor, asked: Tensor) -> Tensor:
    """−Q₁(s, π(s)), mean over the batch: what the actor descends."""
    return -critic(torch.cat([obs, actor(torch.cat([obs, asked], 1)), asked], 1))[0].mean()
