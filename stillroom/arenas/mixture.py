"""Eight Gaussians on a ring, of which everything is known, and a teacher that is wrong on purpose."""

import copy
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.data import TensorDataset

from stillroom.arenas.cast import Cast
from stillroom.arenas.denoising import Denoising
from stillroom.measure.generation import modes_covered, sliced_wasserstein
from stillroom.models.denoisers import PointNet, point_judge
from stillroom.parts import diffusion
from stillroom.run import Run

STD, RADIUS = 0.1, 2.0
WRONG_STD = 0.3             # of every mode, where the teacher is biased
SAMPLES = 2000
WIDTH = 64


def mixture(seed: int = 0, biased: bool = False) -> Cast:
    """Teacher, a judge for its bottleneck, 4,000 points and judges.

    truth                        the mixture itself, with its exact denoiser
    draw(generator, at=(1.0,))   SAMPLES points [n, 2] from noise that is always the same
    solve(steps, order=1)        as many by the teacher
    distance(points)             sliced 2-Wasserstein to fresh points of the mixture
    modes(points)                modes that got a quarter of their share, within four standard deviations
    """
    truth, teacher = ring(), _teacher(seed, biased)
    torch.manual_seed(3000 + seed)
    fresh, points = truth.draw(SAMPLES), truth.draw(4000)
    return Cast(
        {"teacher": copy.deepcopy(teacher), "judge": point_judge(WIDTH), "data": _with_no_label(points)},
        data="a ring of eight Gaussians", real=False, truth=truth,
        draw=lambda generator, at=(1.0,): _draw(
            lambda noise: diffusion.sample(generator, noise, diffusion.at(generator.sigmas, at))),
        solve=lambda steps, order=1: _draw(lambda noise: diffusion.solve(teacher, noise, steps, order=order)),
        distance=lambda points: sliced_wasserstein(points, fresh),
        modes=lambda points: modes_covered(points, truth.means, 4 * STD),
    )


def ring(std: float = STD) -> diffusion.Mixture:
    """Eight modes on a circle."""
    angle = torch.arange(8) * torch.pi / 4
    return diffusion.Mixture(RADIUS * torch.stack([angle.cos(), angle.sin()], 1), std)


@lru_cache(maxsize=8)
def _teacher(seed: int, biased: bool) -> Module:
    torch.manual_seed(seed)
    points = ring(WRONG_STD if biased else STD).draw(8000)
    denoiser = diffusion.Edm(PointNet(2, WIDTH), data_std=points.std().item())
    return Denoising(steps=1500, batch=256)(Run(seed=seed, device="cpu"), denoiser=denoiser, data=_with_no_label(points))


def _with_no_label(points: Tensor) -> TensorDataset:
    return TensorDataset(points, torch.full((len(points),), -100))


def _draw(sampler) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return sampler(torch.randn(SAMPLES, 2))
