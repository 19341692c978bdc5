"""ZCA whitening of images (Bell & Sejnowski 1997), as data sets are whitened before they are distilled (Nguyen et al. 2021)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from stillroom.batches import whole


@dataclass(frozen=True)
class Whitening:
    """What was found in images: their mean [dims], W [dims, dims], symmetric, and its inverse, dims = channels·height·width."""

    mean: Tensor
    matrix: Tensor
    inverse: Tensor


def zca(x: Tensor, eps: float = 0.1) -> Whitening:
    """W = U (S + ε)^(−½) Uᵀ of the covariance U S Uᵀ of the images x [images, channels, height, width].

    ε is added to each variance, in squared units of x; at 0 the covariance becomes the identity, if it has full rank.
    """
    mean = x.flatten(1).mean(0, dtype=torch.float64)
    centred = (part.flatten(1).double() - mean for part in x.split(4096))       # in parts: a copy in float64 may not fit
    variance, axes = torch.linalg.eigh(sum((c.T @ c for c in centred), torch.zeros(1).to(mean)) / (len(x) - 1))
    scale = (variance.clamp(min=0) + eps).sqrt()
    return Whitening(*(t.to(x.dtype) for t in (mean, axes / scale @ axes.T, axes * scale @ axes.T)))


def apply(x: Tensor, found: Whitening) -> Tensor:
    """The images x [images, channels, height, width], whitened; differentiable in x."""
    return ((x.flatten(1) - found.mean) @ found.matrix).view_as(x)


def invert(x: Tensor, found: Whitening) -> Tensor:
    """Images as they were before `apply`, to be looked at."""
    return (x.flatten(1) @ found.inverse + found.mean).view_as(x)


def whitened(data, eps: float = 0.1) -> TensorDataset:
    """All samples of a data set, images first, whitened by their own statistics; held in memory."""
    x, *rest = whole(data)
    return TensorDataset(apply(x, zca(x, eps)), *rest)
