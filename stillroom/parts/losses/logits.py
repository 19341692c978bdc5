"""Comparisons of class scores, [batch, classes]."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

UNLABELLED = -100      # the class of a sample without label; PyTorch's own ignore_index


def kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(student/T)), summed over classes, mean over samples (Hinton et al. 2015, sec. 2).

    student, teacher: logits [batch, classes]; returns a scalar in nats.
    """
    p, q = (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
    return F.kl_div(p, q, reduction="batchmean", log_target=True) * temperature**2


def labels(logits: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with the labels, mean over the batch; a sample without a label counts 0, so that parts of a batch add up.

    logits [batch, classes], y [batch] with `UNLABELLED` where there is no label; returns a scalar in nats. Of pixels, logits
    [batch, classes, height, width] and y [batch, height, width], the mean is over all pixels, in the same way.
    """
    return F.cross_entropy(logits, y, ignore_index=UNLABELLED, reduction="sum", label_smoothing=smoothing) / y.numel()


# --- other ways to compare two distributions ---------------------------------------------------------------------------

def soft_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """−Σ_c q_c log p_c with p = softmax(student), q = softmax(teacher), mean over samples.

    Logits [batch, classes]; a scalar in nats. Its gradient in the student is that of `kl` at temperature 1.
    """
    return -(teacher.float().softmax(-1) * student.float().log_softmax(-1)).sum(-1).mean()


def symmetric_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """½·[KL(q‖p) + KL(p‖q)], summed over classes, mean over samples: what the released code of SSLD (Cui et al. 2021) computes.

    Logits [batch, classes]; a scalar in nats, 0 when both distributions are one, without upper bound.
    """
    p, q = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    return ((q.exp() - p.exp()) * (q - p)).sum(-1).mean() / 2


def js(student: Tensor, teacher: Tensor) -> Tensor:
    """Jensen–Shannon divergence ½·KL(p‖m) + ½·KL(q‖m) with m = (p + q)/2, mean over samples (Lin 1991).

    Logits [batch, classes]; a scalar in nats between 0 and ln 2.
    """
    p, q = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    m = torch.logaddexp(p, q) - torch.tensor(2.0).log().to(p)
    return (F.kl_div(m, p, reduction="batchmean", log_target=True) + F.kl_div(m, q, reduction="batchmean", log_target=True)) / 2


# --- the target and the others: Yang et al. 2023, From Knowledge Distillation to Self-Knowledge Distillation ------------

def of_target(logits: Tensor, target: Tensor) -> Tensor:
    """log-probability of each sample's target class, [batch]. logits [batch, classes], target [batch] of class numbers."""
    return logits.float().log_softmax(-1).gather(1, target[:, None]).squeeze(1)


def without_target(scores: Tensor, target: Tensor) -> Tensor:
    """The scores of all classes but the target, in their order: [batch, classes] → [batch, classes − 1]."""
    kept = torch.arange(scores.shape[1] - 1, device=scores.device).expand(len(scores), -1)
    return scores.gather(1, kept + (kept >= target[:, None]))


def nkd_target(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """−q_t log p_t, mean over samples: the teacher's probability of the target is the soft label (first term of eq. 8).

    Logits [batch, classes], target [batch] of class numbers; a scalar in nats. No gradient reaches the teacher.
    """
    return -(of_target(teacher, target).detach().exp() * of_target(student, target)).mean()


def nkd_others(student: Tensor, teacher: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """−τ² Σ_{i≠t} q̂_i log p̂_i, mean over samples: the target's logit is taken out of both nets *before* the softmax, so that
    the other classes sum to one in each (second term of eq. 8, without γ).

    Logits [batch, classes], target [batch] of class numbers; a scalar in nats. No gradient reaches the teacher.
    """
    p, q = (without_target(z.float(), target) / temperature for z in (student, teacher))
    return -(q.detach().softmax(-1) * p.log_softmax(-1)).sum(-1).mean() * temperature**2


def uskd_target(logits: Tensor, y: Tensor) -> Tensor:
    """−P_t log p_t, mean over samples; P_t = p_t² + 1 − mean over the batch of p_t², without gradient: a soft label for the
    target that follows how the student's own certainty is spread over the batch (eq. 9 and 10, labels of weight 1).

    logits [batch, classes], y [batch] of class numbers; a scalar in nats. It depends on the whole batch.
    """
    own = of_target(logits, y)
    square = own.detach().exp().square()
    return -((square + 1 - square.mean()) * own).mean()


def uskd_others(logits: Tensor, weak: Tensor, y: Tensor, mix: Literal["probability", "code"] = "probability") -> Tensor:
    """−Σ_{i≠t} N_i log p̂_i, mean over samples: the others' soft labels N follow Zipf's law over `zipf_labels`, without gradient.

    logits, weak [batch, classes] of the student and of its weak head, y [batch] of class numbers; a scalar in nats.
    """
    return -(zipf_labels(logits, weak, y, mix) * without_target(logits.float(), y).log_softmax(-1)).sum(-1).mean()


@torch.no_grad()
def zipf_labels(logits: Tensor, weak: Tensor, y: Tensor, mix: Literal["probability", "code"] = "probability") -> Tensor:
    """Labels of the other classes by their rank alone: class i gets 1/rank(i), the target is taken out, the rest sums to one.

    The rank is that of w_i/(1 − w_t) + p_i/(1 − p_t), w = softmax(weak), p = softmax(logits), the target included.
    logits, weak [batch, classes], y [batch] → [batch, classes − 1].
    mix: "code" puts log p for p, as the authors' release does; both orders agree where one of the two terms rules.
    """
    w, p = weak.float().softmax(-1), logits.float().log_softmax(-1)
    if mix == "probability":
        p = p.exp()
    w, p = (s / (1 - s.gather(1, y[:, None]) + 1e-6) for s in (w, p))
    rank = (w + p).argsort(dim=-1, descending=True, stable=True).argsort(-1) + 1
    others = without_target(1 / rank, y)
    return others / others.sum(-1, keepdim=True)
