"""Rates and latencies with more producers, workers and waiters. `rows` has those with more rows."""

from collections.abc import Callable

from ..arithmetic import percentile, summary
from ..harness import Harness
from ..marks import VARIABLE
from ..peers import Bare, Ours, Peer, RedisResults
from ..peers.celery_app import environment
from ..peers.celery_peers import CeleryPeer
from ..processes import Process
from ..result import Curve, Result, Series
from .waiting import Waits, many_waiters
from .worker import Throughput, throughput

METHOD = """Producers are processes that submit one job after the other for some seconds, concurrently.
Workers have two processes each. Waiters are threads of one process; each calls `result()` for a job of its
own, while one worker runs bodies of a millisecond. All of them and the servers share the machine's cores: a
line stops to rise when the cores are busy."""


def run(harness: Harness) -> Result:
    """Measure the rates of producers and workers, and the latencies of waiters."""
    result = Result("growth", "How cost grows", METHOD)
    with harness.peers([Bare, RedisResults, Ours], result.missing) as peers:
        ready = {name: peer for name, peer in peers.items() if isinstance(peer, CeleryPeer)}
        _producers(harness, result, {name: ready[name] for name in (Bare.name, Ours.name)})
        _workers(harness, result, {name: ready[name] for name in (RedisResults.name, Ours.name)})
        _waiters(harness, result, ready[Ours.name])
    return result


def _producers(harness: Harness, result: Result, peers: dict[str, CeleryPeer]) -> None:
    seconds = harness.amount(2, 2)
    counts = (1, 2) if harness.quick else (1, 2, 4)
    measurements = {
        (name, count): _submitting(peer, count, seconds) for name, peer in peers.items() for count in counts
    }
    _grow(harness, result, "Jobs submitted a second", "producers", "jobs/s", measurements, 2)


def _workers(harness: Harness, result: Result, peers: dict[str, CeleryPeer]) -> None:
    jobs = harness.amount(500, 500)
    counts = (1, 2) if harness.quick else (1, 4)
    measurements = {
        # More jobs for more workers: those that run before all workers are ready do not count.
        (name, count): _rate(throughput(harness, peer, jobs * count, count))
        for name, peer in peers.items()
        for count in counts
    }
    _grow(
        harness, result, "No-op jobs run a second", "workers, two processes each", "jobs/s", measurements, 2
    )


def _rate(measure: Callable[[], Throughput]) -> Callable[[], float]:
    return lambda: measure().rate


def _waiters(harness: Harness, result: Result, peer: CeleryPeer) -> None:
    peer.start_workers()
    counts = (1, 20) if harness.quick else (1, 10, 100, 1_000)
    measured = harness.measure(
        {str(count): many_waiters(peer, count, 0.001) for count in counts}, 2, quick_rounds=1, warm_up=False
    )
    peer.stop_workers()
    lines: dict[str, list[tuple[float, float]]] = {"p50": [], "p99": []}
    queries: list[tuple[float, float]] = []
    for count in counts:
        rounds: list[Waits] = measured[str(count)]
        for percent, name in ((50, "p50"), (99, "p99")):
            delays = [percentile(waits.delays, percent) * 1000 for waits in rounds]
            lines[name].append((count, summary(delays).median))
            result.series.append(Series(f"{count} waiters, {name}", delays, f"ms ({name})"))
        queries.append((count, summary([waits.queries for waits in rounds]).median))
        if failed := sum(waits.failed for waits in rounds):
            result.missing[f"{count} waiters"] = f"{failed} waits failed or did not return in time"
    result.curves.append(Curve("From the end of a body to its waiters", "waiters", "ms", lines, True))
    result.curves.append(
        Curve("Queries that a wait costs", "waiters", "queries per job", {Ours.name: queries}, True)
    )


def _grow(
    harness: Harness,
    result: Result,
    title: str,
    x: str,
    unit: str,
    measurements: dict[tuple[str, int], Callable[[], float]],
    rounds: int,
) -> None:
    named = {
        f"{name}, {count} {x.split(',', maxsplit=1)[0]}": measure
        for (name, count), measure in measurements.items()
    }
    measured = harness.measure(named, rounds, quick_rounds=1, warm_up=False)
    lines: dict[str, list[tuple[float, float]]] = {}
    for (name, count), (label, values) in zip(measurements, measured.items(), strict=True):
        lines.setdefault(name, []).append((count, summary(values).median))
        result.series.append(Series(label, values, f"{unit}, {x.split(',', maxsplit=1)[0]}"))
    result.curves.append(Curve(title, x, unit, lines))


def _submitting(peer: CeleryPeer, count: int, seconds: float) -> Callable[[], float]:
    def measure() -> float:
        processes = [_producer(peer, number, seconds) for number in range(count)]
        try:
            for process in processes:
                process.wait_for("ready")
            (peer.sandbox.folder / "go").touch()
            for process in processes:
                process.wait(seconds + 60)
            return sum(float(process.output.split()[-1]) for process in processes)
        finally:
            for process in processes:
                process.end()
            (peer.sandbox.folder / "go").unlink(missing_ok=True)
            peer.purge()

    return measure


def _producer(peer: Peer, number: int, seconds: float) -> Process:
    log = peer.sandbox.folder / f"producer-{number}.log"
    log.unlink(missing_ok=True)
    kind = "ours" if isinstance(peer, Ours) else "bare"
    variables = {**environment(kind, peer.sandbox), VARIABLE: str(peer.sandbox.marks.path)}
    words = ["benchmarks.producer", str(seconds), str(peer.sandbox.folder / "go")]
    return Process(words, log, peer.sandbox.reaper, variables)
