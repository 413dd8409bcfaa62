"""A figure with its 95 % interval, clustered by video: what every analysis gives and the report draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from isr_dpo.evaluate.statistics import Difference, Interval, clustered_mean


@dataclass(frozen=True)
class Estimate:
    """`value` with the bounds of its 95 % interval, all in the unit of the figure. Bounds are None where nothing is
    known about the spread: one video, or a figure reported without."""

    value: float
    low: float | None = None
    high: float | None = None
    rows: int | None = None
    clusters: int | None = None
    """Videos."""

    @classmethod
    def of(cls, interval: Interval | Difference) -> Estimate:
        low, high = (bound if isfinite(bound) else None for bound in (interval.low, interval.high))
        return cls(interval.mean, low, high, interval.rows, interval.clusters)

    def scaled(self, factor: float) -> Estimate:
        """In another unit."""
        low, high = (None if bound is None else factor * bound for bound in (self.low, self.high))
        return Estimate(factor * self.value, low, high, self.rows, self.clusters)

    @property
    def is_clear(self) -> bool:
        """Of a difference: whether the interval leaves zero out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def mean(
    values: Sequence[float], videos: Sequence[str], *, within: tuple[float, float] | None = None
) -> Estimate | None:
    """The mean of `values`, `videos[i]` being the video of `values[i]`; None where there are none. `within` is the
    range that the mean can have at all."""
    if not values:
        return None
    interval = clustered_mean(values, videos)
    return Estimate.of(interval.within(*within) if within else interval)


def ratio(above: Sequence[float], below: Sequence[float], videos: Sequence[str]) -> Estimate | None:
    """sum(above) / sum(below); None where the latter is zero.

    Its interval is the clustered interval of the linearised values (a_i - R b_i) / mean(b), whose mean is zero: the
    delta method for a ratio of means.
    """
    if not below or sum(below) <= 0:
        return None
    whole = sum(above) / sum(below)
    mean_below = sum(below) / len(below)
    spread = clustered_mean([(a - whole * b) / mean_below for a, b in zip(above, below, strict=True)], videos)
    return Estimate.of(spread._replace(mean=whole, low=whole + spread.low, high=whole + spread.high))
