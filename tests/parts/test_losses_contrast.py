"""Comparisons of views: the naive sums, the authors' numbers, limits and gradients."""

import math

import pytest
import torch

from stillroom.parts.losses.contrast import cross_view


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wave(*shape, start=0.0):
    return torch.sin(start + 1.7 * torch.arange(math.prod(shape), dtype=torch.float64)).view(*shape)


# --- views -----------------------------------------------------------------------------------------------------------

def test_cross_view_is_the_sum_over_pairs_of_different_views():
    student, teacher = draw(5, 3, 7), draw(2, 3, 7, seed=1).softmax(-1)
    logs, pairs = student.log_softmax(-1), []
    for t in range(2):
        pairs += [-(teacher[t] * logs[v]).sum(-1).mean() for v in range(5) if v != t]
    assert cross_view(student, teacher).item() == pytest.approx(sum(p.item() for p in pairs) / 8, rel=1e-5)


@pytest.mark.parametrize(("epoch", "sharp", "theirs"), [
    (0, 0.04, 17.197305013814468), (1, 0.055, 18.12586362131181), (5, 0.07, 17.966446359318493)])
def test_cross_view_gives_the_numbers_of_the_authors(epoch, sharp, theirs):
    """DINOLoss of facebookresearch/dino, main_dino.py: 4 crops, 3 images, 5 prototypes, temperatures 0.04 to 0.07 in 3 epochs."""
    centre = torch.zeros(5, dtype=torch.float64)
    for past in [e for e in (0, 1, 5) if e < epoch]:
        centre.lerp_(wave(6, 5, start=10 + past).mean(0), 0.1)
    student, teacher = wave(4, 3, 5, start=epoch) / 0.1, wave(2, 3, 5, start=10 + epoch)
    ours = cross_view(student, ((teacher - centre) / sharp).softmax(-1))
    assert ours.item() == pytest.approx(theirs, rel=1e-6)


def test_a_view_learns_nothing_from_itself():
    student = draw(2, 3, 4).requires_grad_()
    other = draw(2, 3, 4, seed=1).softmax(-1)
    changed = torch.stack([other[0].roll(1, -1), other[1]])               # what the teacher says of view 0
    grads = [torch.autograd.grad(cross_view(student, t), student)[0] for t in (other, changed)]
    torch.testing.assert_close(grads[0][0], grads[1][0])
    assert not torch.allclose(grads[0][1], grads[1][1])


def test_limits_of_cross_view():
    flat = torch.zeros(3, 2, 8)
    assert cross_view(flat, flat[:2].softmax(-1)).item() == pytest.approx(math.log(8), rel=1e-6)
    sure = torch.zeros(3, 2, 8)
    sure[..., 1] = 50.0
    assert cross_view(sure, sure[:2].softmax(-1)).item() == pytest.approx(0.0, abs=1e-6)
    scores = draw(3, 2, 8).requires_grad_()                                # minimal where the student says what it is taught
    same = draw(1, 2, 8, seed=2).softmax(-1).expand(2, 2, 8)
    at = same[:1].log().expand(3, 2, 8).detach().requires_grad_()
    grad = torch.autograd.grad(cross_view(at, same), at)[0]
    assert grad.abs().max() < 1e-6 and cross_view(scores, same) > cross_view(at, same)


def test_half_precision_scores_are_summed_in_full():
    student, teacher = draw(4, 16, 64).bfloat16(), draw(2, 16, 64, seed=1).softmax(-1).float()
    loss = cross_view(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_view(student.float(), teacher))
