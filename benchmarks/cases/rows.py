"""Each operation beside five million finished jobs, against beside a thousand."""

import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from sqlalchemy import func, text

from jobhandle_celery.store import Run, Worker
from tests.servers import execute

from ..arithmetic import ratios, summary
from ..marks import clock
from ..peers import Ours
from ..peers.celery_app import TASK
from ..result import Curve, Goal, Result, Series
from ..rows import clone
from ..stage import Stage

METHOD = """One database for each number of finished jobs, with three events each, as copies of a job that was
submitted, claimed and finished; then vacuumed and analysed. The databases take turns, operation by operation.
Submit, cancel, find (a page of all jobs, or of a user who has a hundred) and a pass of the sweep (with
nothing due) are public calls. Claim and finish are the store's verbs, with which a worker moves a row
(`jobs._runtime.store`): no public call makes them alone."""

FEW = 1_000
OPERATIONS = ("submit", "claim", "finish", "cancel", "find", "find of a user", "sweep")

USER = "ann"
OWN = 100
"""Jobs of that user, beside those of a thousand others."""
MOST_MILLISECONDS = 10
"""What a page of a user's jobs may take, beside any number of others'."""


def run(stage: Stage) -> Result:
    """Measure."""
    result = Result("rows", "Millions of finished jobs", METHOD)
    counts = [FEW, *([20_000] if stage.quick else [100_000, 5_000_000])]
    with ExitStack() as stack:
        tables = {}
        for count in counts:
            # A pass less than an interval after the former one does nothing.
            settings = {"jobhandle_sweep_interval": 0.0001}
            peer = Ours(stack.enter_context(stage.place("rows")), settings)
            stack.callback(peer.close)
            peer.prepare()
            stage.progress.say(f"fills a database with {count:,} finished jobs")
            begun = clock()
            tables[f"{count:,}"] = table = Table(peer)
            clone(peer.place.database_url, table.done(), count, _SPREAD)
            result.series.append(Series(f"to fill in {count:,} jobs", [clock() - begun], "s"))
            if count == counts[-1]:
                for what, size in _sizes(peer.place.database_url, count).items():
                    result.series.append(Series(what, [size], "bytes a job"))
        for operation in OPERATIONS:
            stage.progress.say(operation)
            some = stage.amount(40, 10)
            measured = stage.contest(
                {name: _each(table, operation, some) for name, table in tables.items()}, 15
            )
            fewest, most = measured[f"{FEW:,}"], measured[f"{counts[-1]:,}"]
            what = f"{operation}, beside {counts[-1]:,} finished jobs against {FEW:,}"
            result.goals.append(Goal(what, ratios(most, fewest), 1.15, "×", at_least=False))
            if operation == "find of a user":
                result.goals.append(
                    Goal(f"{operation}, in all", most, MOST_MILLISECONDS, "ms", at_least=False)
                )
            for name, values in measured.items():
                result.series.append(Series(f"{operation}, {name} jobs", values, f"ms ({operation})"))
            line = [(float(count), summary(measured[f"{count:,}"]).median) for count in counts]
            if operation == OPERATIONS[0]:
                result.curves = [
                    Curve("One operation beside so many finished jobs", "finished jobs", "ms", {}, True)
                ]
            result.curves[0].lines[operation] = line
    return result


_SPREAD: dict[str, Any] = {
    # A second apart, into the past: all that a row of last year's has is its age.
    name: func.clock_timestamp() - text("number * interval '1 second'")
    for name in ("submitted", "started", "finished")
} | {"username": func.concat("user ", text("number % 1000"))}


def _sizes(url: str, count: int) -> dict[str, float]:
    """Return how many bytes a finished job takes in its table, in its indexes, and in its events."""
    asked = (
        "SELECT pg_table_size('jobhandle_job'), pg_indexes_size('jobhandle_job'), "
        "pg_total_relation_size('jobhandle_job_event')"
    )
    names = ("its row", "its row's indexes", "its three events, and their indexes")
    return dict(zip(names, (int(size) / count for size in execute(url, asked)[0]), strict=True))


class Table:
    """The operations on one database."""

    def __init__(self, peer: Ours) -> None:
        self._peer = peer
        self._store = peer.jobs._runtime.store
        self._worker = Worker("bench@localhost", str(uuid.uuid4()), 1)
        self._store.leases.renew(self._worker)
        task = peer.app.tasks[TASK]
        peer.jobs.submit_many([task.s(number) for number in range(OWN)], username=USER)
        peer.jobs.cancel_many(username=USER)

    def done(self) -> int:
        """Submit, claim and finish a job; return its id."""
        (run,) = self._runs(1)
        self._claim(run)
        self._finish(run)
        return run.job_id

    def time(self, operation: str, count: int) -> float:
        """Return how many milliseconds an operation takes, of so many."""
        self._store.leases.renew(self._worker)
        match operation:
            case "submit":
                taken = _timed(self._peer.submit, list(range(count)))
            case "claim":
                runs = self._runs(count)
                taken = _timed(self._claim, runs)
                self._end(runs)
            case "finish":
                runs = self._runs(count)
                for run in runs:
                    self._claim(run)
                taken = _timed(self._finish, runs)
            case "cancel":
                ids = [run.job_id for run in self._runs(count)]
                handles = [self._peer.jobs.attach(job_id) for job_id in ids]
                taken = _timed(lambda handle: handle.cancel_job(), handles)
            case "find of a user":
                taken = _timed(lambda username: self._peer.jobs.find(username=username), [USER] * count)
            case "find":
                taken = _timed(
                    lambda status: self._peer.jobs.find(status=status), [None, "Finished"] * (count // 2)
                )
            case _:
                self._peer.purge()
                time.sleep(0.01)
                taken = _timed(self._sweep, list(range(count)))
        self._peer.purge()
        return taken

    def _runs(self, count: int) -> list[Run]:
        runs = []
        for number in range(count):
            job_id = self._peer.submit(number)
            task_id = self._peer.handle.get_job().task_id
            runs.append(Run(job_id, str(task_id), 1, str(uuid.uuid4()), self._worker))
        return runs

    def _claim(self, run: Run) -> None:
        won = self._store.runs.claim(run, "benchmarks.body")
        if not isinstance(won, Run):
            raise AssertionError(won)

    def _finish(self, run: Run) -> None:
        if not self._store.runs.finish(run, "1"):
            raise AssertionError(run)

    def _end(self, runs: list[Run]) -> None:
        for run in runs:
            self._finish(run)

    def _sweep(self, _: int) -> None:
        if not self._peer.jobs.sweep():
            raise AssertionError("a pass was not made")


def _timed(operation: Callable[[Any], object], each: list[Any]) -> float:
    begun = clock()
    for value in each:
        operation(value)
    return (clock() - begun) * 1000 / len(each)


def _each(table: Table, operation: str, count: int) -> Callable[[], float]:
    return lambda: table.time(operation, count)
