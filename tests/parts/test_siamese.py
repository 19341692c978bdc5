"""Augmentations that are drawn once and can be differentiated."""

import pytest
import torch

from stillroom.errors import Refused
from stillroom.parts import siamese
from stillroom.parts.siamese import KINDS, Views, augment, draw

X = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def views(kind, *u):
    return Views(kind, torch.tensor([u] * len(X), dtype=torch.float64))


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_same_draws_give_the_same_views_and_a_gradient_reaches_the_pixels(kind):
    drawn, x = draw(5, kind), X.clone().requires_grad_()
    out = augment(x, drawn)
    assert out.shape == x.shape and torch.equal(out, augment(x, drawn))
    assert torch.autograd.grad(out.sum(), x)[0].abs().sum() > 0


@pytest.mark.parametrize(("kind", "u"), [("color", (0.5, 0.5, 0.5)), ("crop", (0.5, 0.5, 0)), ("flip", (0.9, 0, 0)),
                                         ("rotate", (0.5, 0, 0)),
                                         ("scale", ((1 - 1 / 1.2) / (1.2 - 1 / 1.2),) * 2 + (0,)), ("", (0, 0, 0))])
def test_the_middle_draw_changes_nothing(kind, u):
    assert torch.allclose(augment(X, views(kind, *u)), X, atol=1e-6)


def test_flip_crop_and_cutout_by_hand():
    assert torch.equal(augment(X, views("flip", 0.1, 0, 0)), X.flip(3))
    moved = augment(X, views("crop", 0.0, 0.99, 0))          # one up the window, one right: rows fall, columns rise
    assert torch.equal(moved[:, :, 1:, :-1], X[:, :, :-1, 1:]) and moved[:, :, 0].abs().sum() == 0
    gone = augment(X, views("cutout", 0.5, 0.5, 0)) == 0
    assert gone[:, :, 2:6, 2:6].all() and gone[0, 0].sum() == 16


def test_rotation_keeps_the_centre_and_turns_by_fifteen_degrees_at_most():
    big = torch.zeros(1, 1, 101, 101, dtype=torch.float64)
    big[0, 0, 50, 100] = 1                                   # a point at the right border
    out = siamese._rotate(torch.nn.functional.avg_pool2d(big, 3, 1, 1) * 9, torch.zeros(1, 3, 1, 1, 1, dtype=torch.float64))
    at = (out[0, 0] > 0.3).nonzero().double().mean(0) - 50
    angle = torch.atan2(-at[0], at[1]).abs() * 180 / torch.pi
    assert angle.item() == pytest.approx(15, abs=1.5)


def test_each_sample_has_its_own_draw_and_every_kind_its_turn():
    torch.manual_seed(0)
    assert len(draw(64, "rotate").u.unique(dim=0)) == 64
    assert {draw(1, siamese.ALL).kind for _ in range(200)} == set(siamese.ALL.split("_"))


def test_an_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(Refused, match="did you mean 'rotate'"):
        draw(1, "crop_rotat")
