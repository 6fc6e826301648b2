"""What a mutant is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A change of the code, and the tests that are asked first whether they notice."""

    number: int
    reading: str
    file: str
    old: str
    new: str
    tests: str
    """Arguments of pytest."""
