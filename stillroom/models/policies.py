"""Networks of agents: a policy with its estimates of the returns, and networks that look at states."""

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal
from torch.nn import Module


class ActorCritic(Module):
    """Observations [batch, size] → a distribution over actions, and expected returns [streams, batch].

    actions   how many there are to choose from, or, where `continuous`, how many numbers make one
    hidden    neurons in each of the two layers of actor and critic, which share none
    streams   of reward

    Both begin near zero, last weights of gain 0.01 (Burda et al. 2018): all actions are as likely, and a stream without reward
    brings no noise into the advantage.
    """

    def __init__(self, size: int, actions: int, *, continuous: bool = False, hidden: int = 64, streams: int = 2):
        super().__init__()
        self.actor = _tanh(size, hidden, actions, last=0.01)
        self.critic = _tanh(size, hidden, streams, last=0.01)
        self.log_std = nn.Parameter(torch.zeros(actions)) if continuous else None

    def forward(self, obs: Tensor) -> tuple[Distribution, Tensor]:
        said, value = self.actor(obs).float(), self.critic(obs).float().T
        if self.log_std is None:
            return Categorical(logits=said, validate_args=False), value
        return Independent(Normal(said, self.log_std.exp().expand_as(said), validate_args=False), 1, validate_args=False), value


class Steering(nn.Sequential):
    """Observations [..., size] → one action [..., actions] in [−1, 1], without chance; `hidden` neurons in each of two layers."""

    def __init__(self, size: int, actions: int, hidden: int = 128):
        super().__init__(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, actions),
                         nn.Tanh())


class Critics(Module):
    """What is seen and done [..., size] → the return that each of two networks expects, [2, ...] (Fujimoto et al. 2018)."""

    def __init__(self, size: int, hidden: int = 256):
        super().__init__()
        self.both = nn.ModuleList(nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
                                                nn.Linear(hidden, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([one(x).squeeze(-1) for one in self.both])


def gaze(size: int, hidden: int = 64, out: int = 64) -> nn.Sequential:
    """Observations [batch, size] → features [batch, out]: orthogonal weights of gain √2 throughout, as Burda et al. 2018, which
    makes features of variance 2 where the observations are white."""
    enter, leave = _orthogonal(nn.Linear(size, hidden), 2**0.5), _orthogonal(nn.Linear(hidden, out), 2**0.5)
    return nn.Sequential(enter, nn.ReLU(), leave)


def _tanh(size: int, hidden: int, out: int, last: float) -> nn.Sequential:
    layers = [nn.Linear(size, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh()]
    return nn.Sequential(*(_orthogonal(layer, 2**0.5) for layer in layers), _orthogonal(nn.Linear(hidden, out), last))


def _orthogonal(layer: Module, gain: float) -> Module:
    if isinstance(layer, nn.Linear):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return layer
