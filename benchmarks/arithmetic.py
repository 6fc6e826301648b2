"""Medians, quartiles, ratios and percentiles for the tables."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Median and quartiles of several measurements of one quantity."""

    median: float
    low: float
    """The lower quartile; with fewer than four values, the smallest."""
    high: float
    """The upper quartile; with fewer than four values, the largest."""

    @property
    def spread(self) -> float:
        """Half of the interquartile range, as a fraction of the median."""
        return (self.high - self.low) / 2 / abs(self.median) if self.median else 0.0


def summary(values: Sequence[float]) -> Summary:
    """Return median and quartiles of at least one value."""
    if len(values) < 4:
        return Summary(statistics.median(values), min(values), max(values))
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(middle, low, high)


def ratios(of: Sequence[float], to: Sequence[float]) -> list[float]:
    """Return the ratio within each round: a disturbance of the machine affects both of its values."""
    return [value / other for value, other in zip(of, to, strict=True)]


def differences(of: Sequence[float], to: Sequence[float]) -> list[float]:
    """Return the difference within each round."""
    return [value - other for value, other in zip(of, to, strict=True)]


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that is not exceeded by at least `percent` percent of the values."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)  # rounded up
    return ordered[max(int(rank), 1) - 1]
