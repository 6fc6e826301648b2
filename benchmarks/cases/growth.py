"""How cost grows: with producers, with workers, with waiters. With rows: see `rows`."""

from collections.abc import Callable

from ..arithmetic import percentile, summary
from ..marks import VARIABLE
from ..peers import Bare, Ours, Peer, RedisResults
from ..peers.celery_app import environment
from ..peers.celery_peers import CeleryPeer
from ..processes import Process
from ..result import Curve, Result, Series
from ..stage import Stage
from .waiting import Heard, crowd_for
from .worker import Throughput, throughput

METHOD = """Producers are processes that submit one job after the other for some seconds, all together.
Workers have two processes each. Waiters are threads of one process, each waiting by `result()` for a job of
its own, beside one worker that runs bodies of a millisecond. All on the same cores as the servers: where a
line no longer rises, the cores are busy."""


def run(stage: Stage) -> Result:
    """Measure."""
    result = Result("growth", "How cost grows", METHOD)
    with stage.peers([Bare, RedisResults, Ours], result.missing) as peers:
        ready = {name: peer for name, peer in peers.items() if isinstance(peer, CeleryPeer)}
        _producers(stage, result, {name: ready[name] for name in (Bare.name, Ours.name)})
        _workers(stage, result, ready)
        _waiters(stage, result, ready[Ours.name])
    return result


def _producers(stage: Stage, result: Result, peers: dict[str, CeleryPeer]) -> None:
    seconds = stage.amount(4, 2)
    counts = (1, 2) if stage.quick else (1, 2, 4, 8)
    contestants = {
        (name, count): _submitting(peer, count, seconds) for name, peer in peers.items() for count in counts
    }
    _grow(stage, result, "Jobs submitted a second", "producers", "jobs/s", contestants, 3)


def _workers(stage: Stage, result: Result, peers: dict[str, CeleryPeer]) -> None:
    jobs = stage.amount(2_000, 200)
    counts = (1, 2) if stage.quick else (1, 2, 4)
    contestants = {
        # For each: its workers start one after the other, and what counts are jobs that all of them share.
        (name, count): _rate(throughput(peer, jobs * count, count))
        for name, peer in peers.items()
        for count in counts
    }
    _grow(stage, result, "No-op jobs run a second", "workers, two processes each", "jobs/s", contestants, 2)


def _rate(measure: Callable[[], Throughput]) -> Callable[[], float]:
    return lambda: measure().rate


def _waiters(stage: Stage, result: Result, peer: CeleryPeer) -> None:
    peer.start_workers()
    counts = (1, 20) if stage.quick else (1, 10, 100, 300, 1_000)
    measured = stage.contest(
        {str(count): crowd_for(peer, count, 0.001) for count in counts}, 3, quick_rounds=1, warm_up=False
    )
    peer.stop_workers()
    lines: dict[str, list[tuple[float, float]]] = {"p50": [], "p99": []}
    queries: list[tuple[float, float]] = []
    for count in counts:
        rounds: list[Heard] = measured[str(count)]
        for percent, name in ((50, "p50"), (99, "p99")):
            late = [percentile(each.late, percent) * 1000 for each in rounds]
            lines[name].append((count, summary(late).median))
            result.series.append(Series(f"{count} waiters, {name}", late, f"ms ({name})"))
        queries.append((count, summary([each.queries for each in rounds]).median))
        if failed := sum(each.failed for each in rounds):
            result.missing[f"{count} waiters"] = f"{failed} waits failed or did not return in time"
    result.curves.append(Curve("From the end of a body to its waiters", "waiters", "ms", lines, True))
    result.curves.append(
        Curve("Queries that a wait costs", "waiters", "queries a job", {Ours.name: queries}, True)
    )


def _grow(
    stage: Stage,
    result: Result,
    title: str,
    x: str,
    unit: str,
    contestants: dict[tuple[str, int], Callable[[], float]],
    rounds: int,
) -> None:
    named = {
        f"{name}, {count} {x.split(',', maxsplit=1)[0]}": one for (name, count), one in contestants.items()
    }
    measured = stage.contest(named, rounds, quick_rounds=1, warm_up=False)
    lines: dict[str, list[tuple[float, float]]] = {}
    for (name, count), (label, values) in zip(contestants, measured.items(), strict=True):
        lines.setdefault(name, []).append((count, summary(values).median))
        result.series.append(Series(label, values, f"{unit}, {x.split(',', maxsplit=1)[0]}"))
    result.curves.append(Curve(title, x, unit, lines))


def _submitting(peer: CeleryPeer, count: int, seconds: float) -> Callable[[], float]:
    def measure() -> float:
        processes = [_producer(peer, number, seconds) for number in range(count)]
        try:
            for process in processes:
                process.wait_for("ready")
            (peer.place.folder / "go").touch()
            for process in processes:
                process.wait(seconds + 60)
            return sum(float(process.output.split()[-1]) for process in processes)
        finally:
            for process in processes:
                process.end()
            (peer.place.folder / "go").unlink(missing_ok=True)
            peer.purge()

    return measure


def _producer(peer: Peer, number: int, seconds: float) -> Process:
    log = peer.place.folder / f"producer-{number}.log"
    log.unlink(missing_ok=True)
    kind = "ours" if isinstance(peer, Ours) else "bare"
    variables = {**environment(kind, peer.place), VARIABLE: str(peer.place.marks.path)}
    words = ["benchmarks.producer", str(seconds), str(peer.place.folder / "go")]
    return Process(words, log, peer.place.reaper, variables)
