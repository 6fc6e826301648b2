"""What a job costs if the database is some milliseconds away."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import sqlalchemy

from ..harness import Harness
from ..peers import Ours, Peer, Procrastinate, Sandbox, SqlalchemyResults
from ..processes import Process
from ..result import Result, Series
from .worker import throughput

TITLE = "A database some milliseconds away"
METHOD = """A proxy on the loopback delays each answer of PostgreSQL. One producer submits one job after
another; then a worker with two processes runs jobs that were submitted by one call. A round trip is counted
each time a connection sends something after an answer, those of the worker's start and of its lease too."""

DELAYS = (0.0, 0.001, 0.005)
"""Seconds."""


def run(harness: Harness) -> Result:
    """Measure submits and runs at each distance."""
    result = Result("distance", TITLE, METHOD)
    submits, jobs = harness.amount(60, 20), harness.amount(200, 60)
    rates: dict[str, Callable[[], tuple[float, float]]] = {}
    with ExitStack() as stack:
        for delay in DELAYS:
            for kind in (Ours, Procrastinate, SqlalchemyResults):
                sandbox = stack.enter_context(harness.sandbox(kind.__name__))
                proxy = stack.enter_context(_distant(sandbox, delay))
                try:
                    peer = kind(proxy.sandbox)
                    peer.prepare()
                except ImportError as error:
                    result.missing[kind.name] = f"not installed: {error}"
                    continue
                stack.callback(peer.close)
                what = f"{kind.name}, + {delay * 1000:g} ms"
                rates[f"submit, {what}"] = _submits(proxy, peer, submits)
                rates[f"run, {what}"] = _runs(harness, proxy, peer, jobs)
        measured = harness.measure(rates, 2, quick_rounds=1, warm_up=False)
    result.series = [
        Series(name, [rate for rate, _ in rounds], "jobs/s") for name, rounds in measured.items()
    ]
    result.series += [
        Series(f"{name}: round trips", [trips for _, trips in rounds], "per job")
        for name, rounds in measured.items()
        if "+ 5 ms" in name
    ]
    return result


class Proxy:
    """A running `benchmarks.delay`, and the sandbox whose database is behind it."""

    def __init__(self, process: Process, sandbox: Sandbox) -> None:
        self._process = process
        self.sandbox = sandbox

    @property
    def round_trips(self) -> int:
        """The number so far."""
        time.sleep(0.1)  # longer than the interval of its output
        last = self._process.output.split()[-1]
        return int(last) if last != self.port else 0

    @property
    def port(self) -> str:
        return self._process.output.split()[1]


@contextmanager
def _distant(sandbox: Sandbox, delay: float) -> Iterator[Proxy]:
    url = sqlalchemy.make_url(sandbox.database_url)
    words = ["benchmarks.delay", str(url.host), str(url.port), str(delay)]
    process = Process(words, sandbox.folder / "delay.log", sandbox.reaper)
    try:
        process.wait_for("\n")
        proxy = Proxy(process, sandbox)
        distant = url.set(host="127.0.0.1", port=int(proxy.port))
        proxy.sandbox = replace(sandbox, database_url=distant.render_as_string(hide_password=False))
        yield proxy
    finally:
        process.end()


def _submits(proxy: Proxy, peer: Peer, jobs: int) -> Callable[[], tuple[float, float]]:
    def measure() -> tuple[float, float]:
        peer.submit(0)  # connects
        before, started = proxy.round_trips, time.perf_counter()
        for number in range(jobs):
            peer.submit(number)
        rate = jobs / (time.perf_counter() - started)
        trips = (proxy.round_trips - before) / jobs
        peer.purge()
        return rate, trips

    return measure


def _runs(harness: Harness, proxy: Proxy, peer: Peer, jobs: int) -> Callable[[], tuple[float, float]]:
    run = throughput(harness, peer, jobs)

    def measure() -> tuple[float, float]:
        before = proxy.round_trips
        rate = run().rate
        return rate, (proxy.round_trips - before) / jobs

    return measure
