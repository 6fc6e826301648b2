"""Interleaves measurements, so that a disturbance of the machine affects all of them."""

import random
from collections.abc import Callable, Mapping
from typing import TypeVar

from .progress import Progress

T = TypeVar("T")


def measure_interleaved(
    measurements: Mapping[str, Callable[[], T]], rounds: int, progress: Progress, *, warm_up: bool = True
) -> dict[str, list[T]]:
    """Run each measurement once per round; return the values of each, in the order of the rounds.

    The order within a round is shuffled, with a fixed seed: the first measurement may find an idle machine,
    and a later one the pages that the one before has left to be written. With `warm_up`, a round without a
    result precedes the others: it opens connections and compiles statements.
    """
    names = list(measurements)
    measured: dict[str, list[T]] = {name: [] for name in names}
    for number in range(-1 if warm_up else 0, rounds):
        random.Random(number).shuffle(names)
        for name in names:
            progress.show(f"round {number + 1} of {rounds}: {name}")
            value = measurements[name]()
            if number >= 0:
                measured[name].append(value)
    return measured
