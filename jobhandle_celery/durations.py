"""Numbers and durations as callers give them: seconds, or a `timedelta`. Imports nothing of ours."""

import math
from datetime import timedelta


def finite(value: object) -> float | None:
    """Return a number as a float; None if it is none, or not finite, or a bool."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def duration(value: object) -> timedelta | None:
    """Return seconds, or a timedelta, as a timedelta; None if it is neither, or longer than one can be."""
    if isinstance(value, timedelta):
        return value
    seconds = finite(value)
    try:
        return None if seconds is None else timedelta(seconds=seconds)
    except OverflowError:
        return None
