"""Means with 95 % intervals, clustered by video: questions about one video are not independent.

With residuals e_i = x_i - mean over n rows in G clusters, the cluster-robust variance of the mean is

    V = G / (G - 1) * sum over clusters of (sum of e_i in the cluster)^2 / n^2

and the interval is mean +- t(0.975, G - 1) * sqrt(V). This is the sandwich estimator of a regression on a constant
(Liang and Zeger 1986; Cameron and Miller 2015, "A Practitioner's Guide to Cluster-Robust Inference", section II, with
its G / (G - 1) correction and t(G - 1) critical value); Miller 2024, "Adding Error Bars to Evals", uses it without the
correction. With one row a cluster it is the ordinary interval of a mean.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean over `rows` in `clusters` and its 95 % interval, in the unit of the values. With one cluster nothing is
    known about the spread and the bounds are infinite."""

    mean: float
    low: float
    high: float
    rows: int
    clusters: int

    def within(self, low: float, high: float) -> Interval:
        """The interval cut to the range that the mean can have at all."""
        return self._replace(low=max(self.low, low), high=min(self.high, high))


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


def paired_difference(a: Mapping[str, float], b: Mapping[str, float], clusters: Mapping[str, str]) -> Interval:
    """The mean of a[id] - b[id] over the ids that both have, with its interval clustered by `clusters[id]`.

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
    return clustered_mean([a[i] - b[i] for i in common], [clusters[i] for i in common])


def _critical(degrees: int) -> float:
    """The two-sided 95 % point of Student's t."""
    from scipy.special import stdtrit  # scipy.stats would cost a second of import

    return float(stdtrit(degrees, (1 + LEVEL) / 2))
