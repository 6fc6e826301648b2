"""Seed, scale and random choices of the fault tests. Imports nothing of the library."""

import os
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

SEED = int(os.environ.get("JOBHANDLE_TEST_SEED", "0")) or random.SystemRandom().randrange(2**32)
"""Printed by each test that draws."""
SCALE = float(os.environ.get("JOBHANDLE_FAULTS_SCALE", "1"))
"""Factor for the number of jobs and the duration of faults: 1 for CI, 10 for a night."""
LONG = 10
"""From this scale on, `sample` returns all choices."""


def scaled(count: float) -> int:
    """Return `count`, multiplied by the scale of this run; at least 1."""
    return max(1, round(count * SCALE))


def stretched(seconds: float) -> float:
    """Return a time limit for the scale of this run: `seconds`, or a multiple."""
    return seconds * max(1.0, SCALE)


def rng(*of: object) -> random.Random:
    """Return the generator for one part of a test, the same for the same seed; print the seed."""
    print(f"JOBHANDLE_TEST_SEED={SEED}")
    return random.Random("-".join(map(str, (SEED, *of))))


def sample(choices: Sequence[T], count: float, *of: object) -> list[T]:
    """Draw `count` times the scale, in their order; all of them in a long run."""
    if SCALE >= LONG:
        return list(choices)
    drawn = set(rng(*of).sample(range(len(choices)), min(scaled(count), len(choices))))
    return [choice for number, choice in enumerate(choices) if number in drawn]
