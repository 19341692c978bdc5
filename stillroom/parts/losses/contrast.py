"""Comparisons across views and samples."""

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
