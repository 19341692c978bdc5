"""Generators of handwritten digits: a small diffusion model of scikit-learn's 8 × 8 images is the teacher."""

import copy
from functools import lru_cache
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.data import TensorDataset

from stillroom.arenas.cast import Cast
from stillroom.arenas.denoising import Denoising
from stillroom.arenas.digits import digits
from stillroom.batches import whole
from stillroom.measure.generation import frechet, sliced_wasserstein
from stillroom.models.denoisers import UNet, image_judge
from stillroom.parts import diffusion
from stillroom.run import Run

SAMPLES = 1000      # per judgement
WIDTHS = (16, 32)   # of the denoiser, whose bottleneck has side 4


def handwriting(seed: int = 0) -> Cast:
    """Teacher (a class-conditional denoiser, its schedule Karras et al.'s), a judge for its bottleneck, data and judges.

    draw(generator, at=(1.0,))   SAMPLES digits [n, 1, 8, 8], a hundred of each class, from noise that is always the same
    solve(steps, order=1)        as many by the teacher: DDIM, or Heun with order 2
    frechet(images)              to 500 test digits that nobody has trained on, on the features of a trained classifier
    distance(images)             sliced 2-Wasserstein to the same, on pixels
    obeys(images)                share that the classifier takes for the class that was asked for, in percent
    """
    ground = _ground(seed)
    torch.manual_seed(2000 + seed)
    return Cast(
        {"teacher": copy.deepcopy(ground.teacher), "judge": image_judge(WIDTHS[-1], 4), "data": ground.data},
        data="scikit-learn digits, with classes", test=ground.test, labels=_labels(),
        draw=lambda generator, at=(1.0,): _draw(generator, lambda *given: diffusion.sample(
            generator, given[0], diffusion.at(generator.sigmas, at), given[1])),
        solve=lambda steps, order=1: _solve(seed, steps, order),
        frechet=lambda images: frechet(_features(ground, images), _features(ground, ground.test)),
        distance=lambda images: sliced_wasserstein(images, ground.test),
        obeys=lambda images: 100 * (ground.classifier(images).argmax(-1) == _labels()).float().mean().item(),
    )


@lru_cache(maxsize=4)
def _ground(seed: int) -> SimpleNamespace:
    clean = digits("clean", seed)
    data: TensorDataset = clean.actors["data"]
    x = data.tensors[0]
    torch.manual_seed(seed)
    denoiser = diffusion.Edm(UNet(1, WIDTHS, classes=10), data_std=x.std().item(), data_mean=x.mean().item())
    teacher = Denoising(steps=600)(Run(seed=seed, device="cpu"), denoiser=denoiser, data=data)
    return SimpleNamespace(data=data, test=whole(clean.test)[0], teacher=teacher,
                           classifier=clean.actors["teacher"].eval().requires_grad_(False))


@lru_cache(maxsize=32)
def _solve(seed: int, steps: int, order: int) -> Tensor:
    teacher = _ground(seed).teacher
    return _draw(teacher, lambda noise, y: diffusion.solve(teacher, noise, steps, y, order=order))


def _draw(model: Module, sampler) -> Tensor:
    """What the sampler makes of the same noise and labels, whoever asks."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return sampler(torch.randn(SAMPLES, 1, 8, 8).to(device), _labels().to(device)).cpu()


def _features(ground: SimpleNamespace, images: Tensor) -> Tensor:
    return ground.classifier[:-1](images)            # [n, 128], what its last layer reads


def _labels() -> Tensor:
    return torch.arange(SAMPLES) % 10
