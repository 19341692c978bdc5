"""Running statistics of what a run has seen. Modules, so that they are kept like everything else that remembers."""

import torch
from torch import Tensor, nn
from torch.nn import Module


class RunningMean(Module):
    """Mean and variance of all samples seen, each counted once (Chan, Golub, LeVeque 1979, parallel update).

    shape  of one sample; () for scalars
    """

    def __init__(self, shape: tuple[int, ...] = ()):
        super().__init__()
        self.count = nn.Buffer(torch.zeros((), dtype=torch.long))
        self.mean = nn.Buffer(torch.zeros(shape))
        self.var = nn.Buffer(torch.ones(shape))          # biased, as Burda et al. 2018; 1 until something was seen

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Count the samples x [..., *shape], each of them."""
        x = x.detach().float().reshape(-1, *self.mean.shape)
        if not len(x):
            return
        mean, var, n = x.mean(0), x.var(0, correction=0), len(x)
        total = self.count + n
        share, away = n / total, mean - self.mean
        before = self.var * (self.count > 0)
        self.var.copy_(before + (var - before) * share + away.square() * share * (1 - share))
        self.mean.add_(away * share)
        self.count.copy_(total)

    @property
    def std(self) -> Tensor:
        """Standard deviation, of the shape of a sample."""
        return self.var.sqrt()

    def normalise(self, x: Tensor, limit: float = float("inf"), eps: float = 1e-8) -> Tensor:
        """(x − mean) / std, cut at ±limit; x [..., *shape]. What never varied becomes 0 where it equals its mean."""
        return ((x - self.mean) / (self.var + eps).sqrt()).clamp(-limit, limit)


class ReturnScale(Module):
    """Rewards divided by the running standard deviation of their discounted sum (Burda et al. 2018, sec. 2.4).

    The sum runs forward in time, R ← γ·R + r, one for each environment, and never stops at the end of an episode.
    """

    def __init__(self, envs: int, gamma: float = 0.99):
        super().__init__()
        self.gamma = gamma
        self.running = nn.Buffer(torch.zeros(envs))
        self.seen = RunningMean()

    @torch.no_grad()
    def forward(self, reward: Tensor) -> Tensor:
        """Count the rewards [time, envs] and return them in units of that deviation."""
        sums = torch.empty_like(reward, dtype=torch.float32)
        for now, r in zip(sums, reward, strict=True):
            now.copy_(self.running.mul_(self.gamma).add_(r))
        self.seen.update(sums)
        return reward / (self.seen.std + 1e-8)
