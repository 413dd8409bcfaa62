"""Means and paired differences with 95 % intervals, by video: questions about one video are not independent.

A mean: with residuals e_i = x_i - mean over n rows in G clusters, the cluster-robust variance of the mean is

    V = G / (G - 1) * sum over clusters of (sum of e_i in the cluster)^2 / n^2

and the interval is mean +- t(0.975, G - 1) * sqrt(V). This is the sandwich estimator of a regression on a constant
(Liang and Zeger 1986; Cameron and Miller 2015, "A Practitioner's Guide to Cluster-Robust Inference", section II, with
its G / (G - 1) correction and t(G - 1) critical value); Miller 2024, "Adding Error Bars to Evals", uses it without the
correction. With one row a cluster it is the ordinary interval of a mean.

A paired difference: the bootstrap over videos (Efron and Tibshirani 1993, chapters 13 and 16; Cameron, Gelbach and
Miller 2008, "pairs cluster bootstrap"). A draw takes as many videos as there are, with replacement and all their
questions; the interval holds the middle 95 % of the draws' means, the p-value is twice the smaller share of draws on
either side of no difference.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
DRAWS = 10_000
_DRAWN_AT_A_TIME = 2_000_000
"""Videos, 8 MB."""


class Interval(NamedTuple):
    """A mean over `rows` in `clusters` and its 95 % interval, in the unit of the values. With one cluster nothing is
    known about the spread and the bounds are infinite."""

    mean: float
    low: float
    high: float
    rows: int
    clusters: int

    def within(self, low: float, high: float) -> Interval:
        """The interval cut to the range that the values can have at all.

        Where all of them are at its end, residuals say nothing: a mean m puts all G clusters at the upper end with a
        probability of at most ((m - low) / (high - low))^G, which bounds m (Clopper and Pearson 1934 for a share).
        """
        reach = (high - low) * (1 - ((1 - LEVEL) / 2) ** (1 / self.clusters))
        if self.mean == high:
            return self._replace(low=high - reach, high=high)
        if self.mean == low:
            return self._replace(low=low, high=low + reach)
        return self._replace(low=max(self.low, low), high=min(self.high, high))


class Difference(NamedTuple):
    """A mean difference over `rows` in `clusters`, its 95 % interval in the unit of the values, and the two-sided
    p-value of no difference. With one cluster nothing is known: infinite bounds, p-value 1."""

    mean: float
    low: float
    high: float
    p_value: float
    rows: int
    clusters: int


def clustered_mean(values: Sequence[float], clusters: Sequence[str]) -> Interval:
    """The mean of `values` with its interval; `clusters[i]` is the cluster of `values[i]`.

    Raises:
        ValueError: no values, or lengths that differ.
    """
    if not values or len(values) != len(clusters):
        raise ValueError(
            f"clustered_mean: {len(values)} values for {len(clusters)} clusters; needs as many, at least one"
        )
    x_N = np.asarray(values, dtype=np.float64)
    mean = float(x_N.mean())
    sums: dict[str, float] = defaultdict(float)
    for cluster, residual in zip(clusters, x_N - mean, strict=True):
        sums[cluster] += float(residual)
    groups = len(sums)
    if groups == 1:
        return Interval(mean, -np.inf, np.inf, rows=len(values), clusters=1)
    variance = groups / (groups - 1) * sum(s * s for s in sums.values()) / len(values) ** 2
    reach = _critical(groups - 1) * variance**0.5
    return Interval(mean, mean - reach, mean + reach, rows=len(values), clusters=groups)


def paired_difference(
    a: Mapping[str, float], b: Mapping[str, float], clusters: Mapping[str, str], *, seed: int = 0, draws: int = DRAWS
) -> Difference:
    """The mean of a[id] - b[id] over the ids that both have, by a bootstrap over `clusters[id]`; the same for the same
    `seed`, whatever the order of the ids.

    Ids that only one of them has (unscored in the other) take no part; `rows` says how many remained.

    Raises:
        ValueError: no common id, or an id without a cluster.
    """
    common = sorted(a.keys() & b.keys())
    if not common:
        raise ValueError(f"paired_difference: no id in common between {len(a)} and {len(b)} values")
    lost = [i for i in common if i not in clusters]
    if lost:
        raise ValueError(f"paired_difference: {len(lost)} ids have no cluster, the first is {lost[0]!r}")
    differences_N = np.array([a[i] - b[i] for i in common], dtype=np.float64)
    _, cluster_N = np.unique([clusters[i] for i in common], return_inverse=True)
    sums_G, rows_G = np.bincount(cluster_N, weights=differences_N), np.bincount(cluster_N)
    groups = len(rows_G)
    mean = float(differences_N.mean())
    if groups == 1:
        return Difference(mean, -np.inf, np.inf, 1.0, rows=len(common), clusters=1)
    means_D = _bootstrap(sums_G, rows_G, draws=draws, seed=seed)
    low, high = np.quantile(means_D, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    beyond = min(np.count_nonzero(means_D <= 0), np.count_nonzero(means_D >= 0))
    p_value = min(1.0, 2 * (beyond + 1) / (draws + 1))  # a draw more: the sample itself, so never 0
    return Difference(mean, float(low), float(high), float(p_value), rows=len(common), clusters=groups)


def _bootstrap(sums_G: np.ndarray, rows_G: np.ndarray, *, draws: int, seed: int) -> np.ndarray:
    """The mean of each draw [D]: of G clusters with replacement, whose values sum to sums_G over rows_G rows."""
    groups = len(rows_G)
    generator = np.random.default_rng(seed)
    at_a_time = max(1, _DRAWN_AT_A_TIME // groups)
    means = []
    for start in range(0, draws, at_a_time):
        drawn = generator.integers(0, groups, size=(min(at_a_time, draws - start), groups), dtype=np.int32)
        means.append(sums_G[drawn].sum(axis=1) / rows_G[drawn].sum(axis=1))
    return np.concatenate(means)


def _critical(degrees: int) -> float:
    """The two-sided 95 % point of Student's t."""
    from scipy.special import stdtrit  # scipy.stats would cost a second of import

    return float(stdtrit(degrees, (1 + LEVEL) / 2))
