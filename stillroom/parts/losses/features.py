"""Comparisons of features: vectors, tokens, maps."""

import torch.nn.functional as F
from torch import Tensor


def whitened_smooth_l1(student: Tensor, teacher: Tensor, beta: float = 2.0) -> Tensor:
    """Smooth L1 to the teacher's tokens, each normalised to mean 0 and variance 1 without scale and shift, ε = 1e-6;
    mean over all elements (Huang et al. 2023, sec. 3.2 and engine_distill.py).

    student, teacher: [batch, tokens, dim]; d²/2β where |d| < β, |d| − β/2 elsewhere. Returns a scalar.
    """
    return F.smooth_l1_loss(student, F.layer_norm(teacher, teacher.shape[-1:], eps=1e-6), beta=beta)
