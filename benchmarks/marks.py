"""The begin and end of bodies, recorded by the bodies themselves with one write of 24 bytes.

Every contestant's body is the same: it reads the clock that all processes of a machine share twice, and
appends one mark to a file by one `write`, which does not mix the marks of several processes. That takes about
two microseconds. This module does not import the library, since workers of every contestant import it.
"""

import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "BENCHMARK_MARKS"
_FORM = struct.Struct("<qdd")
_descriptors: dict[tuple[int, str], int] = {}


def clock() -> float:
    """Return seconds by the clock that all processes of this machine share."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def body(number: int, seconds: float = 0.0) -> int:
    """Do what every contestant's job does: next to nothing, or sleep so long; return the number."""
    begun = clock()
    if seconds:
        time.sleep(seconds)
    key = os.getpid(), os.environ[VARIABLE]
    if key not in _descriptors:
        _descriptors[key] = os.open(key[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(_descriptors[key], _FORM.pack(number, begun, clock()))
    return number


@dataclass(frozen=True)
class Mark:
    """One body: which, and when."""

    number: int
    begun: float
    ended: float


class Marks:
    """The file of the marks of one contestant."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clear()

    def clear(self) -> None:
        """Delete all marks. The file itself stays, because workers hold it open."""
        with self.path.open("wb"):
            pass

    def count(self) -> int:
        """Return how many bodies have ended."""
        return self.path.stat().st_size // _FORM.size

    def all(self) -> list[Mark]:
        """Return the marks, in the order of the bodies' ends."""
        return [Mark(*fields) for fields in _FORM.iter_unpack(self.path.read_bytes())]

    def wait_for(self, count: int, timeout: float = 300, pause: float = 0.005) -> list[Mark]:
        """Wait until so many bodies have ended; return their marks.

        Raises:
            TimeoutError: with the number that had.
        """
        deadline = clock() + timeout
        while self.count() < count:
            if clock() > deadline:
                raise TimeoutError(f"{self.count()} of {count} bodies have ended after {timeout:g} s")
            time.sleep(pause)
        return self.all()
