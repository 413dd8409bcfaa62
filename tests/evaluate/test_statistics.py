from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable

import numpy as np
import pytest
import scipy.stats

from isr_dpo.evaluate.statistics import clustered_mean, paired_difference


def test_two_clusters_by_hand() -> None:
    # mean 0.6; residual sums: a 0.4 + 0.4 - 0.6 = 0.2, b 0.4 - 0.6 = -0.2; V = 2/1 * (0.04 + 0.04) / 25 = 0.0064
    # t(0.975, 1 degree of freedom) = 12.7062047
    interval = clustered_mean([1, 1, 0, 1, 0], ["a", "a", "a", "b", "b"])
    assert interval.mean == pytest.approx(0.6)
    assert interval.high - interval.mean == pytest.approx(12.7062047 * 0.08, rel=1e-6)
    assert interval.mean - interval.low == pytest.approx(12.7062047 * 0.08, rel=1e-6)
    assert (interval.rows, interval.clusters) == (5, 2)


def test_one_row_a_cluster_is_the_ordinary_interval_of_a_mean() -> None:
    from scipy import stats

    values = np.random.default_rng(0).normal(size=40)
    interval = clustered_mean(list(values), [str(i) for i in range(40)])
    low, high = stats.t.interval(0.95, 39, loc=values.mean(), scale=values.std(ddof=1) / math.sqrt(40))
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))


def clustered_answers(seed: int, clusters: int) -> tuple[list[float], list[str]]:
    """Three to six questions a video, right with a probability that the video shares."""
    draws = np.random.default_rng(seed)
    values: list[float] = []
    videos: list[str] = []
    for video in range(clusters):
        ease = draws.beta(2, 1)
        for _ in range(int(draws.integers(3, 7))):
            values.append(float(draws.random() < ease))
            videos.append(f"v{video}")
    return values, videos


def test_it_agrees_with_a_bootstrap_over_videos() -> None:
    values, videos = clustered_answers(1, 200)
    x, names = np.array(values), np.array(videos)
    by_video = [x[names == v] for v in sorted(set(videos))]
    sums, counts = np.array([b.sum() for b in by_video]), np.array([len(b) for b in by_video])
    drawn = np.random.default_rng(2).integers(0, 200, size=(4000, 200))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    interval = clustered_mean(values, videos)
    assert interval.low == pytest.approx(low, abs=0.006)
    assert interval.high == pytest.approx(high, abs=0.006)
    naive = clustered_mean(values, [str(i) for i in range(len(values))])
    assert interval.high - interval.low > 1.15 * (naive.high - naive.low), "clustering must widen it"


def test_it_covers_the_truth_about_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(400):
        interval = clustered_mean(*clustered_answers(seed, 40))
        hits += interval.low <= 2 / 3 <= interval.high  # mean of beta(2, 1)
    assert 0.92 <= hits / 400 <= 0.98


def test_one_cluster_knows_nothing_about_the_spread() -> None:
    interval = clustered_mean([1.0, 0.0], ["a", "a"])
    assert (interval.low, interval.high) == (-math.inf, math.inf)
    assert interval.within(0, 1)[:3] == (0.5, 0, 1)


def test_answers_that_are_all_right_leave_room_for_doubt() -> None:
    """scipy's exact interval of 20 successes in 20 trials is the independent statement."""
    exact = scipy.stats.binomtest(20, 20).proportion_ci(0.95)
    videos = [str(number // 3) for number in range(60)]  # 20 of them, three questions each
    right = clustered_mean([1.0] * 60, videos).within(0, 1)
    assert right[:3] == pytest.approx((1.0, exact.low, 1.0), abs=1e-12)
    wrong = clustered_mean([0.0] * 60, videos).within(0, 1)
    assert wrong[:3] == pytest.approx((0.0, 0.0, 1 - exact.low), abs=1e-12)
    assert clustered_mean([5.0] * 60, videos).within(1, 5).low == pytest.approx(1 + 4 * exact.low, abs=1e-12)


def by_id(values: Iterable[float]) -> dict[str, float]:
    return {f"q{number}": value for number, value in enumerate(values)}


def test_a_paired_difference_is_over_common_questions_and_signed_first_minus_second() -> None:
    a = {"q1": 1.0, "q2": 1.0, "q3": 0.0, "q4": 1.0, "only a": 1.0}
    b = {"q1": 0.0, "q2": 1.0, "q3": 0.0, "q4": 0.0, "only b": 0.0}
    videos = {"q1": "v1", "q2": "v1", "q3": "v2", "q4": "v3"}
    difference = paired_difference(a, b, videos)
    assert (difference.mean, difference.rows, difference.clusters) == (0.5, 4, 3)
    assert paired_difference(b, a, videos).mean == -0.5


def test_three_videos_have_ten_samples_and_the_bootstrap_draws_each_as_often_as_it_should() -> None:
    # Differences by video: v1 (1, 0), v2 (0), v3 (-1). All 27 ordered samples of three videos, pooled by question:
    by_video = {"v1": (1.0, 0.0), "v2": (0.0,), "v3": (-1.0,)}
    pooled = [[x for video in sample for x in by_video[video]] for sample in itertools.product(by_video, repeat=3)]
    means = [sum(values) / len(values) for values in pooled]
    below, above = (sum(m <= 0 for m in means) / 27, sum(m >= 0 for m in means) / 27)
    values, videos = by_id([1.0, 0.0, 0.0, -1.0]), dict(zip(by_id(range(4)), ["v1", "v1", "v2", "v3"], strict=True))
    difference = paired_difference(values, dict.fromkeys(values, 0.0), videos, draws=40_000)
    assert difference.p_value == pytest.approx(min(1, 2 * min(below, above)), abs=0.02)
    assert (difference.low, difference.high) == (min(means), max(means))  # each extreme has 1 of 27, above 2.5 %
    assert difference.mean == 0


def test_the_bootstrap_agrees_with_the_cluster_robust_interval_of_many_videos() -> None:
    first, videos = clustered_answers(4, 300)
    second, _ = clustered_answers(5, 300)
    second = second[: len(first)] + [0.0] * (len(first) - len(second))
    a, b = by_id(first), by_id(second)
    clusters = dict(zip(a, videos, strict=True))
    difference = paired_difference(a, b, clusters)
    robust = clustered_mean([x - y for x, y in zip(first, second, strict=True)], videos)
    assert difference.mean == pytest.approx(robust.mean)
    assert difference.low == pytest.approx(robust.low, abs=0.006)
    assert difference.high == pytest.approx(robust.high, abs=0.006)
    # two-sided normal p-value of the same statistic, 1.96 standard errors being half the interval
    z = abs(robust.mean) / ((robust.high - robust.low) / 2 / 1.968)
    assert difference.p_value == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.02)


def test_a_difference_covers_the_truth_and_finds_none_where_there_is_none() -> None:
    hits, found = 0, 0
    for seed in range(200):
        draws = np.random.default_rng(seed)
        videos = [f"v{number // 3}" for number in range(150)]
        ease = np.repeat(draws.beta(2, 2, size=50), 3)  # both systems find the same videos easy
        a, b = (by_id((draws.random(150) < ease).astype(float)) for _ in range(2))
        difference = paired_difference(a, b, dict(zip(a, videos, strict=True)), draws=1000)
        hits += difference.low <= 0 <= difference.high
        found += difference.p_value < 0.05
    assert 0.91 <= hits / 200 <= 0.99
    assert found / 200 <= 0.09


def test_a_difference_is_the_same_for_the_same_seed_in_any_order_and_fast() -> None:
    draws = np.random.default_rng(0)
    a, b = by_id(draws.random(5000)), by_id(draws.random(5000))
    clusters = {i: f"v{number % 2000}" for number, i in enumerate(a)}
    started = time.perf_counter()
    difference = paired_difference(a, b, clusters)
    assert time.perf_counter() - started < 5
    assert paired_difference(dict(reversed(a.items())), b, dict(reversed(clusters.items()))) == difference
    assert paired_difference(a, b, clusters, seed=1).low != difference.low


def test_equal_answers_differ_by_nothing() -> None:
    a = by_id([1.0, 0.0, 1.0])
    assert paired_difference(a, a, {i: i for i in a})[:4] == (0.0, 0.0, 0.0, 1.0)


def test_a_difference_on_one_video_says_nothing() -> None:
    a, b = by_id([1.0, 1.0]), by_id([0.0, 0.0])
    assert paired_difference(a, b, dict.fromkeys(a, "v"))[:4] == (1.0, -math.inf, math.inf, 1.0)


def test_pairing_is_narrower_than_two_separate_means() -> None:
    first, videos = clustered_answers(3, 100)
    second = list(first)
    second[0] = 1 - second[0]
    ids = [str(i) for i in range(len(first))]
    clusters = dict(zip(ids, videos, strict=True))
    interval = paired_difference(dict(zip(ids, first, strict=True)), dict(zip(ids, second, strict=True)), clusters)
    alone = clustered_mean(first, videos)
    assert interval.high - interval.low < 0.1 * (alone.high - alone.low)


def test_impossible_input_is_named() -> None:
    with pytest.raises(ValueError, match="0 values for 0 clusters"):
        clustered_mean([], [])
    with pytest.raises(ValueError, match="no id in common"):
        paired_difference({"a": 1.0}, {"b": 1.0}, {})
    with pytest.raises(ValueError, match="no cluster, the first is 'a'"):
        paired_difference({"a": 1.0}, {"a": 1.0}, {})
