"""Comparisons of distributions by what denoisers and judges say of their samples."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def distribution_match(fake: Tensor, real_clean: Tensor, fake_clean: Tensor) -> Tensor:
    """A loss whose gradient with respect to each sample is (x̂_fake − x̂_real) / mean|x − x̂_real| / n, n the number of elements:
    down the reverse KL from the generator's distribution to the teacher's (Yin et al. 2024, DMD eq. 7 and 8).

    fake [batch, …] generated, with gradient; real_clean, fake_clean: the same samples noised alike and denoised by teacher and
    critic, taken as constants. The mean runs over all but the batch. Where it is 0, and so the direction undefined, the
    gradient is 0. Returns ½·MSE(x, SG[x − gradient·n]), a scalar.
    """
    x = fake.float()
    with torch.no_grad():
        away = (x - real_clean).abs().flatten(1).mean(1).view(-1, *[1] * (x.ndim - 1))
        pull = torch.nan_to_num((fake_clean - real_clean) / away, nan=0.0, posinf=0.0, neginf=0.0)
        goal = x - pull
    return 0.5 * F.mse_loss(x, goal)


def realism(fake: Tensor) -> Tensor:
    """softplus(−l), mean: the generator's share of the non-saturating GAN loss. fake: the judge's logits of its samples."""
    return F.softplus(-fake.float()).mean()


def telling_apart(real: Tensor, fake: Tensor) -> Tensor:
    """softplus(l_fake) + softplus(−l_real), means: the judge's share. Logits, positive for real."""
    return F.softplus(fake.float()).mean() + F.softplus(-real.float()).mean()


# --- several judges, each of which gives its logits and a list of the features it saw on the way ------------------------

Told = tuple[Tensor, list[Tensor]]


def least_squares_realism(fake: Sequence[Told]) -> Tensor:
    """Σ_judges mean (1 − l_fake)²: the generator's share of the least-squares GAN loss (Mao et al. 2017, eq. 9)."""
    return torch.stack([(1 - logits.float()).square().mean() for logits, _ in fake]).sum()


def least_squares_telling(real: Sequence[Told], fake: Sequence[Told]) -> Tensor:
    """Σ_judges mean (1 − l_real)² + mean l_fake²: the judges' share."""
    return least_squares_realism(real) + torch.stack([logits.float().square().mean() for logits, _ in fake]).sum()


def alike(real: Sequence[Told], fake: Sequence[Told]) -> Tensor:
    """Σ_judges Σ_layers mean |features of fake − of real| (Larsen et al. 2016; Kumar et al. 2019, eq. 4)."""
    pairs = [(r, f) for (_, rs), (_, fs) in zip(real, fake, strict=True) for r, f in zip(rs, fs, strict=True)]
    return torch.stack([F.l1_loss(f, r) for r, f in pairs]).sum()
