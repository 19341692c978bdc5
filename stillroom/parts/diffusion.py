"""Diffusion in one set of coordinates: x_σ = x + σ·ε. Noise schedules, denoisers, noising, sampling in one step and in many.

A denoiser is a module `D(x, sigma, y=None)` that returns the estimate of the clean sample. x is [batch, …], sigma [batch] in
the units of the data, y the condition (class labels [batch], `UNLABELLED` for none, or whatever its network takes). It owns

    sigmas            its noise schedule, ascending [levels]
    features(…)       what its network knows at its bottleneck, same arguments
    weight(sigma)     weight of its squared error when it learns to denoise, [batch]
    start(ε, sigma)   what it takes for pure noise at this level

so that a method reads the same over both families, `Edm` (variance exploding) and `Vp` (variance preserving).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import Module

from stillroom.errors import Refused
from stillroom.parts.losses.logits import UNLABELLED

# --- schedules -------------------------------------------------------------------------------------------------------

def karras(levels: int = 1000, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> Tensor:
    """Noise levels from `low` to `high`, evenly spaced in σ^(1/ρ) (Karras et al. 2022, eq. 5), ascending [levels]."""
    ramp = torch.linspace(0, 1, levels, dtype=torch.float64)
    return (low ** (1 / rho) + ramp * (high ** (1 / rho) - low ** (1 / rho))).pow(rho).float()


def ddpm(levels: int = 1000, first: float = 0.00085, last: float = 0.012, power: float = 0.5) -> Tensor:
    """Noise levels σ_t = √((1 − ᾱ_t) / ᾱ_t) of a DDPM, ascending [levels]; β runs evenly in β^power from `first` to `last`.

    The defaults are Stable Diffusion's; `ddpm(1000, 1e-4, 0.02, power=1)` is Ho et al. 2020.
    """
    ramp = torch.linspace(first**power, last**power, levels, dtype=torch.float64)
    kept = (1 - ramp.pow(1 / power)).cumprod(0)      # ᾱ
    return ((1 - kept) / kept).sqrt().float()


def at(sigmas: Tensor, shares: tuple[float, ...]) -> Tensor:
    """The levels that stand at these shares of a schedule: of 1,000, (1, 0.75, 0.5, 0.25) are numbers 999, 749, 499, 249.

    Raises `Refused` unless the shares lie in (0, 1] and fall.
    """
    if not shares or list(shares) != sorted({s for s in shares if 0 < s <= 1}, reverse=True):
        raise Refused(f"{tuple(shares)} are no steps through a noise schedule", "shares from 1 down, such as 1.0 0.75 0.5 0.25")
    return sigmas[[max(0, round(s * len(sigmas)) - 1) for s in shares]]


# --- denoisers -------------------------------------------------------------------------------------------------------

class Edm(Module):
    """A network with the preconditioning of Karras et al. 2022 (eq. 7, table 1): it sees and says things of unit variance.

    net        F(x, c_noise, y) of the shape of x, with `features` of the same arguments; c_noise = ln(σ) / 4
    data_std   σ_data, standard deviation of the data
    data_mean  their mean, a scalar; 0 in the paper, which centres its images
    sigmas     schedule; `karras()` by default
    """

    def __init__(self, net: Module, data_std: float = 0.5, data_mean: float = 0.0, sigmas: Tensor | None = None):
        super().__init__()
        self.net, self.data_std, self.data_mean = net, data_std, data_mean
        self.sigmas = nn.Buffer(karras() if sigmas is None else sigmas, persistent=False)

    def forward(self, x: Tensor, sigma: Tensor, y=None) -> Tensor:
        s, spread = _like(sigma, x), (_like(sigma, x).square() + self.data_std**2)
        skip, out = self.data_std**2 / spread, s * self.data_std / spread.sqrt()
        return self.data_mean + skip * (x - self.data_mean) + out * self.net(*self._seen(x, sigma), y)

    def features(self, x: Tensor, sigma: Tensor, y=None) -> Tensor:
        return self.net.features(*self._seen(x, sigma), y)

    def _seen(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return (x - self.data_mean) / (_like(sigma, x).square() + self.data_std**2).sqrt(), sigma.log() / 4

    def weight(self, sigma: Tensor) -> Tensor:
        """λ(σ) = σ⁻² + σ_data⁻², which makes the network's own target weigh 1 at every level."""
        return sigma**-2 + self.data_std**-2

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        return self.data_mean + sigma * noise


class Vp(Module):
    """A network that predicts the noise of x_t = a·x + s·ε (DDPM, Stable Diffusion), in the coordinates x_t / a = x + σ·ε.

    net     ε̂(x_t, t, y) of the shape of x, t [batch] the number of the level, with `features` of the same arguments
    sigmas  schedule; `ddpm()` by default
    """

    def __init__(self, net: Module, sigmas: Tensor | None = None):
        super().__init__()
        self.net = net
        self.sigmas = nn.Buffer(ddpm() if sigmas is None else sigmas, persistent=False)

    def forward(self, x: Tensor, sigma: Tensor, y=None) -> Tensor:
        return x - _like(sigma, x) * self.net(*self._seen(x, sigma), y)

    def features(self, x: Tensor, sigma: Tensor, y=None) -> Tensor:
        return self.net.features(*self._seen(x, sigma), y)

    def _seen(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        above = torch.searchsorted(self.sigmas, sigma.contiguous()).clamp(1, len(self.sigmas) - 1)
        nearer = (sigma - self.sigmas[above - 1]) < (self.sigmas[above] - sigma)
        return x / (1 + _like(sigma, x).square()).sqrt(), above - nearer.long()

    def weight(self, sigma: Tensor) -> Tensor:
        """σ⁻²: the squared error of the predicted noise."""
        return sigma**-2

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        return noise * (1 + sigma**2).sqrt()         # x_t is the noise itself, whatever the level says


class Mixture(Module):
    """The exact denoiser of a mixture of Gaussians, E[x | x + σ·ε]: a teacher without error.

    means [modes, …], std of every mode, shares [modes] of the samples (equal when left out). `draw(n)` samples the mixture.
    """

    def __init__(self, means: Tensor, std: float, shares: Tensor | None = None, sigmas: Tensor | None = None):
        super().__init__()
        shares = torch.ones(len(means)) if shares is None else shares
        self.std, self.means = std, nn.Buffer(means)
        self.shares = nn.Buffer((shares / shares.sum()).to(means))
        self.sigmas = nn.Buffer(karras() if sigmas is None else sigmas, persistent=False)

    def forward(self, x: Tensor, sigma: Tensor, y=None) -> Tensor:
        spread = self.std**2 + sigma.square()        # variance of each mode after noising, [batch]
        away = (x[:, None] - self.means).flatten(2).square().sum(-1)            # [batch, modes]
        guilt = (self.shares.log() - away / (2 * spread[:, None])).softmax(-1)  # which mode it came from
        centre = (guilt @ self.means.flatten(1)).view_as(x)
        return centre + _like(self.std**2 / spread, x) * (x - centre)

    def weight(self, sigma: Tensor) -> Tensor:
        return sigma**-2

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        return sigma * noise

    def draw(self, n: int) -> Tensor:
        """Samples [n, …]."""
        mode = torch.multinomial(self.shares, n, replacement=True)
        return self.means[mode] + self.std * torch.randn_like(self.means[mode])


# --- noising and denoising -------------------------------------------------------------------------------------------

def noise(x: Tensor, sigmas: Tensor, low: float = 0.0, high: float = 1.0) -> tuple[Tensor, Tensor]:
    """x + σ·ε and σ [batch], a level drawn evenly for each sample between these shares of the schedule, both included."""
    first, last = int(low * len(sigmas)), min(int(high * len(sigmas)), len(sigmas) - 1)
    number = first + (torch.rand(len(x), device=x.device) * (last + 1 - first)).long()
    sigma = sigmas[number.clamp(max=last)]
    return x + _like(sigma, x) * torch.randn_like(x), sigma


def lognormal(x: Tensor, mean: float = -1.2, std: float = 1.2) -> tuple[Tensor, Tensor]:
    """x + σ·ε and σ [batch] with ln σ ~ N(mean, std²), on which denoisers are trained (Karras et al. 2022, table 1)."""
    sigma = (mean + std * torch.randn(len(x), device=x.device)).exp()
    return x + _like(sigma, x) * torch.randn_like(x), sigma


def denoising_loss(denoiser: Module, clean: Tensor, noisy: Tensor, sigma: Tensor, y=None) -> Tensor:
    """λ(σ)·‖D(x_σ, σ) − x‖², mean over batch and elements, λ the denoiser's own weight. Returns a scalar."""
    error = (denoiser(noisy, sigma, y).float() - clean).square()
    return (_like(denoiser.weight(sigma), error) * error).mean()


def guided(denoiser: Module, x: Tensor, sigma: Tensor, y, weight: float) -> Tensor:
    """Classifier-free guidance, D(x, ∅) + w·(D(x, y) − D(x, ∅)); y: class labels [batch]. w = 1 asks the denoiser once."""
    told = denoiser(x, sigma, y)
    if weight == 1.0:
        return told
    untold = denoiser(x, sigma, torch.full_like(y, UNLABELLED))
    return untold + weight * (told - untold)


# --- sampling --------------------------------------------------------------------------------------------------------

@torch.no_grad()
def walk(generator: Module, noise: Tensor, sigmas: Tensor, y=None) -> tuple[Tensor, Tensor]:
    """The generator's input at the last of the descending `sigmas`, and that level [batch]: from pure noise at the first,
    predict the clean sample and noise it again, level by level (backward simulation, Yin et al. 2024, sec. 4.5)."""
    x = generator.start(noise, sigmas[0])
    for here, there in pairwise(sigmas):
        clean = generator(x, here.expand(len(x)), y)
        x = clean + there * torch.randn_like(clean)
    return x, sigmas[-1].expand(len(x))


@torch.no_grad()
def sample(generator: Module, noise: Tensor, sigmas: Tensor, y=None) -> Tensor:
    """Samples of a few-step generator, of the shape of `noise` (standard normal): one evaluation for each of `sigmas`."""
    x, sigma = walk(generator, noise, sigmas, y)
    return generator(x, sigma, y)


@torch.no_grad()
def solve(denoiser: Module, noise: Tensor, steps: int = 18, y=None, *, order: int = 2) -> Tensor:
    """Samples of a diffusion model by its probability-flow ODE dx/dσ = (x − D(x, σ)) / σ, of the shape of `noise`.

    order 2: Heun, 2·steps − 1 evaluations (Karras et al. 2022, algorithm 1); order 1: Euler, which is DDIM, `steps` evaluations.
    """
    if order not in (1, 2):
        raise ValueError(f"order {order}: 1 (Euler, DDIM) or 2 (Heun)")
    grid = denoiser.sigmas[torch.linspace(len(denoiser.sigmas) - 1, 0, steps).round().long()]
    x = denoiser.start(noise, grid[0])
    for here, there in pairwise([*grid, grid.new_zeros(())]):
        slope = (x - denoiser(x, here.expand(len(x)), y)) / here
        ahead = x + (there - here) * slope
        if order == 2 and there > 0:
            slope = (slope + (ahead - denoiser(ahead, there.expand(len(x)), y)) / there) / 2
            ahead = x + (there - here) * slope
        x = ahead
    return x


def _like(v: Tensor, x: Tensor) -> Tensor:
    """[batch] → [batch, 1, …], to be broadcast over x."""
    return v.view(-1, *[1] * (x.ndim - 1))
