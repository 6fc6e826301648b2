"""Medians, spreads and ratios for the tables. Does not import the library."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """What is said of several measurements of one thing."""

    median: float
    low: float
    """The lower quartile; the smallest of fewer than four."""
    high: float
    """The upper quartile; the largest of fewer than four."""

    @property
    def spread(self) -> float:
        """Half of the distance between the quartiles, as a part of the median."""
        return (self.high - self.low) / 2 / abs(self.median) if self.median else 0.0


def summary(values: Sequence[float]) -> Summary:
    """Return median and quartiles of at least one value."""
    if len(values) < 4:
        return Summary(statistics.median(values), min(values), max(values))
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(middle, low, high)


def ratios(of: Sequence[float], to: Sequence[float]) -> list[float]:
    """Return the ratio of each round: both were measured within it, so what disturbed it disturbed both."""
    return [value / other for value, other in zip(of, to, strict=True)]


def differences(of: Sequence[float], to: Sequence[float]) -> list[float]:
    """Return the difference of each round."""
    return [value - other for value, other in zip(of, to, strict=True)]


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least so many percent of the values do not exceed."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)  # rounded up
    return ordered[max(int(rank), 1) - 1]
