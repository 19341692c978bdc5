"""Collapse, dip and growth of curves whose numbers are known by hand."""

import pytest

from stillroom.measure.curves import Dip, collapse, dip, growth


def test_collapse_looks_at_the_early_steps_alone():
    lengths = [100.0, 60.0, 80.0, *[90.0] * 17, 10.0]                    # 21 values; early are the steps up to the second
    assert collapse(lengths) == pytest.approx(0.4)
    assert collapse(lengths, early=1.0) == pytest.approx(0.9)
    assert collapse([5.0, 6.0, 7.0]) == 0 and collapse([4.0, 1.0]) == 0.75


def test_a_dip_ends_where_the_reward_is_back():
    assert dip([1.0, 0.4, -0.5, 0.9, 1.0, 2.0]) == Dip(1.5, 4)
    assert dip([1.0, 0.5, 0.6]) == Dip(0.5, None)
    assert dip([1.0, 1.1, 1.2]) == Dip(0.0, 0), "what never falls is back at once"


def test_growth_is_the_slope_of_the_last_half():
    assert growth([9.0, 0.0, 7.0, 3.0, 10.0, 12.0, 14.0, 16.0]) == pytest.approx(2)
    assert growth([1.0, 5.0, 5.0, 5.0]) == pytest.approx(0, abs=1e-12)
