"""Schedules at the points where their values are known by hand."""

import math

import pytest

from stillroom.parts.schedules import constant, cosine, linear, steps


def test_cosine_starts_ends_and_passes_the_middle():
    f = cosine(3.0, 1.0)
    assert (f(0.0), f(1.0)) == (3.0, 1.0) and f(0.5) == pytest.approx(2.0)
    assert f(0.25) == pytest.approx(2 + math.cos(math.pi / 4))


@pytest.mark.parametrize("make", [cosine, linear, lambda v, **k: constant(v, **k)])
def test_warmup_rises_in_a_straight_line_and_meets_the_schedule(make):
    f = make(2.0, warmup=0.2)
    assert f(0.0) == 0.0 and f(0.1) == pytest.approx(1.0) and f(0.2) == pytest.approx(2.0)


def test_linear_and_constant():
    assert linear(4.0, 2.0)(0.5) == 3.0 and linear(4.0, 2.0, warmup=0.5)(0.75) == 3.0
    assert [constant(5.0)(p) for p in (0, 0.3, 1)] == [5.0, 5.0, 5.0]


def test_steps_fall_by_the_factor_at_each_share():
    f = steps(1.0, 0.5, 0.75, factor=0.1)
    assert [f(p) for p in (0.0, 0.49, 0.5, 0.75, 1.0)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])
