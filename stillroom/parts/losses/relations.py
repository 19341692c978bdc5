"""Comparisons of how samples, or channels, relate to each other within each network."""

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-12      # below which a row is too short to be normalised, as in torch.nn.functional.normalize


def gram(student: Tensor, teacher: Tensor) -> Tensor:
    """‖G_T − G_S‖²/B² with G = f fᵀ of the flattened samples, rows normalised (SP, Tung & Mori 2019, eq. 3 and 4).

    student, teacher [batch, …], of any two widths; a scalar in [0, 4/batch]. The scale of the features makes no difference.
    """
    g_s, g_t = (F.normalize(f @ f.T) for f in (student.float().flatten(1), teacher.float().flatten(1)))
    return (g_t - g_s).square().sum() / len(student) ** 2


def likeness(student: Tensor, teacher: Tensor, temperature: float = 0.09) -> Tensor:
    """Cross-entropy of each sample's softened cosines to the others: −Σ_j q_ij log p_ij with p, q = softmax_j≠i(cosine/τ) of
    student and teacher, mean over samples (HPCR, Lin et al. 2023). Neither scale nor rotation of features makes a difference.

    student, teacher [batch, dim], of any two widths; a scalar in nats. No gradient reaches the teacher.
    """
    apart = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
    p, q = ((z @ z.T / temperature)[apart].view(len(z), -1).log_softmax(1)
            for z in (F.normalize(student.float()), F.normalize(teacher.detach().float())))
    return -(q.exp() * p).sum(1).mean()


def channels(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ‖E_T − E_S‖²/(B·ch) with E = f fᵀ over the channels of each sample, rows normalised (ICKD, Liu et al. 2021, without the
    learnt projection).

    student, teacher [batch, ch, …] with equally many channels; a scalar in [0, 4].
    """
    e_s, e_t = (F.normalize(f @ f.mT, dim=2) for f in (student.float().flatten(2), teacher.float().flatten(2)))
    return (e_t - e_s).square().sum() / (student.shape[0] * student.shape[1])


def channels_of_one(student: Tensor, teacher: Tensor) -> Tensor:
    """`channels` for one number a channel, [rows, ch], without the [ch, ch] matrix: row i of E is then sign(f_i)·f/‖f‖."""
    sides = []
    for f in (student.double(), teacher.double()):
        norm = f.norm(dim=1, keepdim=True)
        row = f.abs() * norm                                         # its length before it is normalised
        sides.append((f.sign() * row / row.clamp(min=EPS), f / norm.clamp(min=torch.finfo(f.dtype).tiny)))
    (a, u), (b, v) = sides
    cross = (a * b).sum(1) * (u * v).sum(1)
    return ((a.square().sum(1) + b.square().sum(1) - 2 * cross).sum() / student.numel()).to(student.dtype)
