"""Figures with intervals: worked arithmetic, and the delta method beside a bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from isr_dpo.analyse.estimate import Estimate, mean, ratio


def test_a_ratio_of_means_and_its_interval_by_hand() -> None:
    found = ratio([3.0, 1.0, 2.0], [1.0, 1.0, 2.0], ["a", "b", "c"])
    # R = 6 / 4; linearised (a - 1.5 b) / (4 / 3): 1.125, -0.375, -0.75; their squares sum to 1.96875
    # variance 3 / 2 * 1.96875 / 9 = 0.328125, t(0.975, 2) = 4.302653
    assert found is not None
    assert found.value == pytest.approx(1.5)
    assert found.high == pytest.approx(1.5 + 4.302653 * 0.328125**0.5, rel=1e-6)
    assert found.low == pytest.approx(1.5 - 4.302653 * 0.328125**0.5, rel=1e-6)
    assert (found.rows, found.clusters) == (3, 3)


def test_the_ratios_interval_is_about_a_bootstraps() -> None:
    draw = np.random.default_rng(0)
    below = draw.gamma(9.0, 2.0, size=600)
    above = below * draw.normal(1.3, 0.3, size=600)
    videos = [f"v{i // 3}" for i in range(600)]
    found = ratio(above.tolist(), below.tolist(), videos)
    sums = np.stack([above, below]).reshape(2, 200, 3).sum(axis=2)
    drawn = sums[:, draw.integers(0, 200, size=(4000, 200))].sum(axis=2)
    low, high = np.quantile(drawn[0] / drawn[1], [0.025, 0.975])
    assert found is not None
    assert found.low == pytest.approx(low, abs=0.006)
    assert found.high == pytest.approx(high, abs=0.006)
    assert high - low > 0.04  # so that the comparison says something


def test_nothing_gives_no_figure() -> None:
    assert mean([], []) is None
    assert ratio([], [], []) is None
    assert ratio([1.0, 2.0], [0.0, 0.0], ["a", "b"]) is None


def test_one_video_has_no_bounds() -> None:
    assert mean([1.0, 3.0], ["a", "a"]) == Estimate(2.0, None, None, rows=2, clusters=1)
    assert not Estimate(2.0).is_clear


def test_bounds_stay_where_the_mean_can_be() -> None:
    found = mean([1.0, 1.0, 0.0], ["a", "b", "c"], within=(0.0, 1.0))
    assert found is not None
    assert (found.low, found.high) == (0.0, 1.0)


def test_a_difference_is_clear_where_its_interval_leaves_zero_out() -> None:
    assert Estimate(0.2, 0.1, 0.3).is_clear
    assert Estimate(-0.2, -0.3, -0.1).is_clear
    assert not Estimate(0.2, -0.1, 0.5).is_clear
    assert Estimate(0.2, 0.1, 0.3).scaled(100) == Estimate(20.0, 10.0, 30.0)
