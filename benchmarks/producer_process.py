"""A producer in a process of its own, as in a service: `Producer`, and the program that it runs.

``python -m benchmarks.producer_process NAME SANDBOX`` reads lines ``each COUNT``, ``together COUNT`` or
``handle COUNT`` from its standard input, submits as many jobs, and writes the rate. In one process, the
systems would share a heap and disturb each other by the threads that they leave running.
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
from .peers import ALL, OF_CALLS, Durable, Sandbox
from .processes import ROOT


class ProducerRate(NamedTuple):
    """Rate and cost of some submits."""

    rate: float
    """Jobs per second."""
    processor: float
    """Microseconds of the producer's processor time per job, all its threads together."""


class Producer:
    """The process of one system, or of one measurement of the floor, until it is closed."""

    def __init__(self, name: str, sandbox: Sandbox) -> None:
        self._errors = (sandbox.folder / "producer.log").open("w+")
        urls = {name: getattr(sandbox, name) for name in ("broker_url", "redis_url", "database_url")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, name, json.dumps(urls | {"folder": str(sandbox.folder)})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
        )
        sandbox.reaper.watch(self._process.pid)

    def submit_each(self, jobs: int) -> ProducerRate:
        """Submit jobs one after the other.

        Raises:
            RuntimeError: The process has ended; the message has the last lines of its output.
        """
        return self._request("each", jobs)

    def submit_together(self, jobs: int) -> ProducerRate:
        """Submit jobs by the system's call for many. Raises as `submit_each` does."""
        return self._request("together", jobs)

    def submit_by_handle(self, jobs: int) -> ProducerRate:
        """Submit jobs of a durable task by `handle.submit`, one after the other.

        Raises as `submit_each` does.
        """
        return self._request("handle", jobs)

    def _request(self, how: str, jobs: int) -> ProducerRate:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            print(how, jobs, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            self._errors.seek(0)
            raise RuntimeError(f"the producer has ended:\n{self._errors.read()[-2000:]}")
        return ProducerRate(*json.loads(answer))

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
        self._errors.close()


def _measure(jobs: int, submit: Callable[[range], object]) -> ProducerRate:
    started, spent = clock(), time.process_time()
    submit(range(jobs))
    return ProducerRate(jobs / (clock() - started), (time.process_time() - spent) * 1e6 / jobs)


def _each(submit: Callable[[int], object]) -> Callable[[range], object]:
    def submit_each(jobs: range) -> None:
        for number in jobs:
            submit(number)

    return submit_each


def _ways(name: str, sandbox: Sandbox) -> dict[str, Callable[[range], object]]:
    if name in FLOORS:
        return {"each": _each(getattr(Floor(sandbox), FLOORS[name]))}
    peer = next(kind for kind in (*ALL, *OF_CALLS) if kind.name == name)(sandbox)
    peer.open()
    ways = {"each": _each(peer.submit), "together": peer.submit_many}
    return ways | {"handle": _each(peer.submit_by_handle)} if isinstance(peer, Durable) else ways


def main(name: str, urls: dict[str, str]) -> None:
    """Serve the requests of `Producer`."""
    folder = Path(urls.pop("folder"))
    ways = _ways(name, Sandbox(**urls, folder=folder, marks=Marks(folder / "marks"), reaper=Reaper()))
    for line in sys.stdin:
        how, jobs = line.split()
        print(json.dumps(_measure(int(jobs), ways[how])), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
