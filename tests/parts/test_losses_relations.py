"""How samples and channels relate, against the formulas written out in float64."""

import pytest
import torch

from stillroom.parts.losses import relations


@pytest.fixture
def f():
    torch.manual_seed(0)
    return torch.randn(6, 3, 4, 4), torch.randn(6, 5, 2, 2)


def naive_gram(a, b):
    """Eq. 3 and 4 of Tung & Mori 2019, entry by entry."""
    grams = []
    for x in (a.double().flatten(1), b.double().flatten(1)):
        g = torch.tensor([[float(p @ q) for q in x] for p in x], dtype=torch.float64)
        grams.append(torch.stack([row / row.square().sum().sqrt() for row in g]))
    return sum(float((p - q) ** 2) for p, q in zip(grams[0].flatten(), grams[1].flatten())) / len(a) ** 2


def naive_channels(a, b):
    total = 0.0
    for x, y in zip(a.double().flatten(2), b.double().flatten(2)):
        rows = [[row / row.square().sum().sqrt() for row in m @ m.T] for m in (x, y)]
        total += sum(float((p - q).square().sum()) for p, q in zip(*rows))
    return total / (a.shape[0] * a.shape[1])


def test_gram_is_the_formula_for_features_of_any_two_widths(f):
    assert relations.gram(*f).item() == pytest.approx(naive_gram(*f), rel=1e-5)


def test_gram_is_zero_for_equals_and_blind_to_scale_and_rotation(f):
    a, b = f
    turn = torch.linalg.qr(torch.randn(48, 48))[0]
    assert relations.gram(a, a).item() == 0 < relations.gram(a, b).item() <= 4 / 6
    assert relations.gram(7 * a, b / 3).item() == pytest.approx(relations.gram(a, b).item(), rel=1e-5)
    assert relations.gram(a.flatten(1) @ turn, b).item() == pytest.approx(relations.gram(a, b).item(), rel=1e-4)
    assert relations.gram(a, -a).item() == pytest.approx(0, abs=1e-12)           # products of two samples do not see a sign
    assert relations.gram(a + 3, b).item() != pytest.approx(relations.gram(a, b).item(), rel=1e-2)


def test_channels_is_the_formula_and_blind_to_scale(f):
    a, b = f[0], torch.randn(6, 3, 5, 5)
    assert relations.channels(a, b).item() == pytest.approx(naive_channels(a, b), rel=1e-5)
    assert relations.channels(a, 9 * a).item() == pytest.approx(0, abs=1e-10)
    assert 0 < relations.channels(a, b).item() <= 4


def test_channels_of_one_is_channels_without_the_matrix():
    torch.manual_seed(1)
    a, b = torch.randn(4, 7), torch.randn(4, 7)
    a[0, 2], b[1], a[2, 3] = 0.0, 0.0, 1e-20         # a dead channel, a class without gradient, one that has all but vanished
    a[3] *= 1e-9                                     # its rows are shorter than what is normalised
    whole = relations.channels(a[..., None], b[..., None])
    assert relations.channels_of_one(a, b).item() == pytest.approx(whole.item(), rel=1e-5)
    assert relations.channels_of_one(a[:3], a[:3]).item() == pytest.approx(0, abs=1e-12)
    assert relations.channels_of_one(a[:1], -a[:1]).item() == pytest.approx(0, abs=1e-12)        # g gᵀ has no sign
    wide = torch.randn(3, 100_000)                   # its matrices would take 240 GB
    assert 0 < relations.channels_of_one(wide, torch.randn(3, 100_000)).item() < 4


def test_both_are_losses_that_pull_the_student_to_the_teacher(f):
    a, b = f[0].clone().requires_grad_(), torch.randn(6, 3, 4, 4)
    for distance in (relations.gram, relations.channels):
        before = distance(a, b)
        (grad,) = torch.autograd.grad(before, a)
        assert distance(a.detach() - 0.1 * grad / grad.norm(), b) < before
