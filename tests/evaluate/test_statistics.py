from __future__ import annotations

import math

import numpy as np
import pytest

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


def test_a_paired_difference_is_over_common_questions_and_signed_first_minus_second() -> None:
    a = {"q1": 1.0, "q2": 1.0, "q3": 0.0, "q4": 1.0, "only a": 1.0}
    b = {"q1": 0.0, "q2": 1.0, "q3": 0.0, "q4": 0.0, "only b": 0.0}
    videos = {"q1": "v1", "q2": "v1", "q3": "v2", "q4": "v3"}
    expected = clustered_mean([1.0, 0.0, 0.0, 1.0], ["v1", "v1", "v2", "v3"])
    assert paired_difference(a, b, videos) == expected
    assert expected.mean == 0.5
    assert paired_difference(b, a, videos).mean == -0.5


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
