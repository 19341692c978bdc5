"""Judges of images: how far they are from the true ones."""

import torch
import torch.nn.functional as F
from torch import Tensor


def psnr(made: Tensor, truth: Tensor, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB, the mean over images [n, …]: 10·log₁₀(peak² / mean squared error of the image)."""
    error = (made.double() - truth.double()).square().flatten(1).mean(1)
    return (10 * torch.log10(peak**2 / error.clamp(min=torch.finfo(error.dtype).tiny))).mean().item()


def ssim(made: Tensor, truth: Tensor, peak: float = 1.0, side: int = 11, sigma: float = 1.5) -> float:
    """Structural similarity (Wang et al. 2004, eq. 13), the mean over images [n, channels, height, width] and all places where
    the Gaussian window of `side` pixels lies within the image."""
    made, truth = made.double(), truth.double()
    bell = torch.exp(-((torch.arange(side, dtype=made.dtype, device=made.device) - (side - 1) / 2) / sigma).square() / 2)
    window = (bell[:, None] * bell / bell.sum().square()).expand(made.shape[1], 1, side, side)

    def local(x: Tensor) -> Tensor:
        return F.conv2d(x, window, groups=x.shape[1])

    one, other = local(made), local(truth)
    spread = local(made.square()) - one.square() + local(truth.square()) - other.square()
    common = local(made * truth) - one * other
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    alike = (2 * one * other + c1) * (2 * common + c2) / ((one.square() + other.square() + c1) * (spread + c2))
    return alike.mean().item()
