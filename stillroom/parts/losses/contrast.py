"""Comparisons across views and samples."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_view(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy of every view of the student with every other view of the teacher, mean over pairs and samples
    (Caron et al. 2021, eq. 3).

    student: scores already divided by its temperature, [views, batch, k]; teacher: probabilities of its own views, which are the
    first ones of the student's, [taught, batch, k]. Pairs of the same view are left out. Returns a scalar in nats.
    """
    logs, taught = student.float().log_softmax(-1), teacher.float()
    all_pairs = -(taught.sum(0) * logs.sum(0)).sum()                     # Σ_t Σ_v p_t·log q_v without a tensor for every pair
    same_view = -(taught * logs[: len(taught)]).sum()
    pairs = len(taught) * (len(student) - 1)
    return (all_pairs - same_view) / (pairs * student.shape[1])


def to_proxies(feature: Tensor, proxies: Tensor, y: Tensor, temperature: float = 0.09, samples: bool = False) -> Tensor:
    """−log of the softmax of cosine/τ at the own class's proxy, among the proxies of the labels in the batch, each as often as it
    occurs; mean over samples. A class that does not occur is not pushed away (PCR, Lin et al. 2023).

    feature [batch, dim], proxies [classes, dim], y [batch] of class numbers; a scalar in nats.
    samples: the other samples stand beside the proxies, and those of its class beside its proxy, mean over these (HPCR).
    """
    z, own = F.normalize(feature.float()), F.normalize(proxies.float())[y]
    same = y[:, None] == y                                               # [batch, batch]
    scores = z @ own.T / temperature
    if samples:
        itself = torch.eye(len(y), dtype=torch.bool, device=y.device)
        scores = torch.cat([scores, (z @ z.T / temperature).masked_fill(itself, -torch.inf)], 1)
        same = torch.cat([same, same & ~itself], 1)
    log_p = scores.log_softmax(1).masked_fill(~same, 0)
    return -(log_p.sum(1) / same.sum(1)).mean()
