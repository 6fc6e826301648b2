"""A producer in a process of its own, as in a service: `Producer`, and what runs in it.

``python -m benchmarks.paced NAME PLACE`` submits as many jobs as each line of its input says, one after the
other or together, and answers with its pace. With all contestants in one process they would share a heap, and
threads that one of them has left would be in the way of the next.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.reaper import Reaper

from .floor import FLOORS, Floor
from .marks import Marks, clock
from .peers import ALL, Place
from .processes import ROOT


class Pace(NamedTuple):
    """What a producer did."""

    rate: float
    """Jobs a second."""
    processor: float
    """Microseconds of its own processor time a job, all its threads together."""


class Producer:
    """The process of one contestant, or of one of the floors, until it is closed."""

    def __init__(self, name: str, place: Place) -> None:
        self._errors = (place.folder / "producer.log").open("w+")
        urls = {name: getattr(place, name) for name in ("broker_url", "redis_url", "database_url")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, name, json.dumps(urls | {"folder": str(place.folder)})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
        )
        place.reaper.watch(self._process.pid)

    def pace(self, jobs: int) -> Pace:
        """Have it submit so many, one after the other; return its pace.

        Raises:
            RuntimeError: it has ended; with the last lines of what it said.
        """
        return self._ask("each", jobs)

    def together(self, jobs: int) -> Pace:
        """Have it submit so many in its best way for that; return its pace. Raises as `pace` does."""
        return self._ask("together", jobs)

    def _ask(self, how: str, jobs: int) -> Pace:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            print(how, jobs, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            self._errors.seek(0)
            raise RuntimeError(f"a producer has ended:\n{self._errors.read()[-2000:]}")
        return Pace(*json.loads(answer))

    def close(self) -> None:
        """End it."""
        self._process.communicate()
        self._errors.close()


def _paced(jobs: int, submit: Callable[[range], object]) -> Pace:
    begun, spent = clock(), time.process_time()
    submit(range(jobs))
    return Pace(jobs / (clock() - begun), (time.process_time() - spent) * 1e6 / jobs)


def _each(one: Callable[[int], object]) -> Callable[[range], object]:
    def each(jobs: range) -> None:
        for number in jobs:
            one(number)

    return each


def _ways(name: str, place: Place) -> dict[str, Callable[[range], object]]:
    if name in FLOORS:
        return {"each": _each(getattr(Floor(place), FLOORS[name]))}
    peer = next(kind for kind in ALL if kind.name == name)(place)
    peer.open()
    return {"each": _each(peer.submit), "together": peer.submit_many}


def main(name: str, urls: dict[str, str]) -> None:
    """Submit as many jobs as each line says."""
    folder = Path(urls.pop("folder"))
    ways = _ways(name, Place(**urls, folder=folder, marks=Marks(folder / "marks"), reaper=Reaper()))
    for line in sys.stdin:
        how, jobs = line.split()
        print(json.dumps(_paced(int(jobs), ways[how])), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
