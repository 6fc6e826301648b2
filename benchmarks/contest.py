"""Contestants take turns, round by round, so that whatever disturbs the machine disturbs all of them."""

import random
from collections.abc import Callable, Mapping
from typing import TypeVar

from .progress import Progress

T = TypeVar("T")


def contest(
    contestants: Mapping[str, Callable[[], T]], rounds: int, progress: Progress, *, warm_up: bool = True
) -> dict[str, list[T]]:
    """Let each contestant go once a round, and return what each measured, round by round.

    Each round has another order, the same in each run: who comes first may find a machine that has just
    rested, and who comes next what the one before has left to be written. With `warm_up`, a round before the
    first does not count: it has connections to open and statements to compile.
    """
    names = list(contestants)
    measured: dict[str, list[T]] = {name: [] for name in names}
    for number in range(-1 if warm_up else 0, rounds):
        random.Random(number).shuffle(names)
        for name in names:
            progress.say(f"round {number + 1} of {rounds}: {name}")
            value = contestants[name]()
            if number >= 0:
                measured[name].append(value)
    return measured
