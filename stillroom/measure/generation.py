"""Judges of generators: how far their samples are from the real ones."""

import torch
from torch import Tensor


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 256, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance, in the units of the data: √ of the mean over directions of W₂² of the projections.

    a [n, …], b [m, …]; the directions are the same for a given seed. For n ≠ m quantiles are compared.
    """
    a, b = a.flatten(1).double().cpu(), b.flatten(1).double().cpu()
    draw = torch.Generator().manual_seed(seed)
    along = torch.nn.functional.normalize(torch.randn(a.shape[1], directions, generator=draw, dtype=torch.float64), dim=0)
    one, other = (a @ along).sort(0).values, (b @ along).sort(0).values
    if len(one) != len(other):
        share = (torch.arange(max(len(one), len(other)), dtype=torch.float64) + 0.5) / max(len(one), len(other))
        one, other = (v[(share * len(v)).long()] for v in (one, other))
    return (one - other).square().mean().sqrt().item()


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features (Heusel et al. 2017): |μ_a − μ_b|² +
    tr(Σ_a + Σ_b − 2·(Σ_a·Σ_b)^½). a [n, dim], b [m, dim]; FID when the features are Inception's. Depends on n and m."""
    a, b = a.flatten(1).double().cpu(), b.flatten(1).double().cpu()
    one, other = torch.atleast_2d(a.T.cov()), torch.atleast_2d(b.T.cov())
    root = _root(one)
    cross = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + one.trace() + other.trace() - 2 * cross).clamp(min=0).item()


def modes_covered(x: Tensor, means: Tensor, radius: float, share: float = 0.25) -> int:
    """Modes that got at least `share` of their fair part of the samples within `radius`. x [n, …], means [modes, …]."""
    near, mode = torch.cdist(x.flatten(1).double(), means.flatten(1).double()).min(1)
    counts = torch.bincount(mode[near <= radius], minlength=len(means))
    return int((counts >= share * len(x) / len(means)).sum())


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
