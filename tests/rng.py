"""Scale and random choices of the fault tests. Imports nothing of the library."""

import os
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

SEED = int(os.environ.get("JOBHANDLE_TEST_SEED", "0")) or random.SystemRandom().randrange(2**32)
"""Printed by each test that draws."""
SCALE = float(os.environ.get("JOBHANDLE_FAULTS_SCALE", "1"))
"""How large the crowds are, and how long the storms: 1 for CI, 10 for a night."""
LONG = 10
"""The scale from which nothing is drawn that can be gone through as a whole."""


def scaled(count: float) -> int:
    """Return how many it is on this run's scale."""
    return max(1, round(count * SCALE))


def stretched(seconds: float) -> float:
    """Return how long it may take on this run's scale: so long, or longer."""
    return seconds * max(1.0, SCALE)


def rng(*of: object) -> random.Random:
    """Return the generator for one part of a test, the same for the same seed; print the seed."""
    print(f"JOBHANDLE_TEST_SEED={SEED}")
    return random.Random("-".join(map(str, (SEED, *of))))


def sample(choices: Sequence[T], count: float, *of: object) -> list[T]:
    """Draw so many on this run's scale, in their order; all if there are no more, and in a long run."""
    if SCALE >= LONG:
        return list(choices)
    drawn = set(rng(*of).sample(range(len(choices)), min(scaled(count), len(choices))))
    return [choice for number, choice in enumerate(choices) if number in drawn]
