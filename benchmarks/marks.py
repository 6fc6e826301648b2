"""Start and end of each body, which the body itself appends to a file.

The body is the same in every system. It reads the clock that all processes of a machine share twice, and
appends 24 bytes by one `write`, so that marks of several processes do not mix. That takes about two
microseconds. This module does not import the library, because the workers of every system import it.
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
    """Return seconds of the monotonic clock, which all processes of this machine share."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def body(number: int, seconds: float = 0.0) -> int:
    """Run as the body of a job of any system: sleep for `seconds`, append a mark, return the number."""
    started = clock()
    if seconds:
        time.sleep(seconds)
    key = os.getpid(), os.environ[VARIABLE]
    if key not in _descriptors:
        _descriptors[key] = os.open(key[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(_descriptors[key], _FORM.pack(number, started, clock()))
    return number


@dataclass(frozen=True)
class Mark:
    """Start and end of one body."""

    number: int
    started: float
    ended: float


class Marks:
    """The file of marks of one system."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clear()

    def clear(self) -> None:
        """Delete all marks. The file stays, because workers have it open."""
        with self.path.open("wb"):
            pass

    def count(self) -> int:
        """Return the number of bodies that have ended."""
        return self.path.stat().st_size // _FORM.size

    def all(self) -> list[Mark]:
        """Return the marks, in the order of the bodies' ends."""
        return [Mark(*fields) for fields in _FORM.iter_unpack(self.path.read_bytes())]

    def wait_for(self, count: int, timeout: float = 300, pause: float = 0.005) -> list[Mark]:
        """Wait until `count` bodies have ended; return their marks.

        Raises:
            TimeoutError: Fewer have ended; the message has their number.
        """
        deadline = clock() + timeout
        while self.count() < count:
            if clock() > deadline:
                raise TimeoutError(f"{self.count()} of {count} bodies have ended after {timeout:g} s")
            time.sleep(pause)
        return self.all()
