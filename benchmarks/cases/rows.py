"""The time of each operation in a database with 5,000,000 finished jobs, relative to one with 1,000."""

import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import psycopg
from celery import chain
from sqlalchemy import func, text

from jobhandle_celery.store import Run, Worker
from tests.servers import execute

from ..arithmetic import ratios, summary
from ..clone_rows import clone
from ..harness import Harness
from ..marks import clock
from ..peers import Ours
from ..peers.celery_app import TASK
from ..result import Curve, Goal, Result, Series

METHOD = """A database for each number of finished jobs, with three events each, copies of a job that was
submitted, claimed and finished; then vacuumed and analysed. Each operation is measured on all databases,
interleaved. Submit, cancel, find (a page of all jobs, or of a user who has 100) and a pass of the sweeper
(with nothing due) are public calls. Claim and finish are the methods of the store by which a worker changes
a row; settle is the finish of the first of two chained jobs, by which the second becomes ready and its
message is published. No public call does these alone (`jobs._runtime.store`). The WAL is all that the server
wrote to its log meanwhile, whole pages after a checkpoint among it."""

FEW = 1_000
REPETITIONS = 10
"""Executions of an operation in a round."""
OPERATIONS = ("submit", "claim", "finish", "settle", "cancel", "find", "find of a user", "sweep")

USER = "ann"
JOBS_OF_USER = 100
"""Jobs of that user; the others are those of 1,000 other users."""
MAX_MILLISECONDS = 10
"""Upper bound for a page of a user's jobs, with any number of jobs of others."""


def run(harness: Harness) -> Result:
    """Measure each operation on each database."""
    result = Result("rows", "Millions of finished jobs", METHOD)
    counts = [FEW, *([20_000] if harness.quick else [5_000_000])]
    with ExitStack() as stack:
        tables = {}
        for count in counts:
            # A pass within the interval after the one before does nothing.
            settings = {"jobhandle_sweep_interval": 0.0001}
            peer = Ours(stack.enter_context(harness.sandbox("rows")), settings)
            stack.callback(peer.close)
            peer.prepare()
            harness.progress.show(f"fill a database with {count:,} finished jobs")
            started = clock()
            tables[f"{count:,}"] = table = Table(peer)
            stack.callback(table.close)
            clone(peer.sandbox.database_url, table.done(), count, _SPREAD)
            result.series.append(Series(f"insert of {count:,} finished jobs", [clock() - started], "s"))
            if count == counts[-1]:
                for what, size in _sizes(peer.sandbox.database_url, count).items():
                    result.series.append(Series(what, [size], "bytes per job"))
        for operation in OPERATIONS:
            harness.progress.show(operation)
            costs = harness.measure({name: _cost(table, operation) for name, table in tables.items()}, 9)
            measured = {name: [cost.milliseconds for cost in rounds] for name, rounds in costs.items()}
            fewest, most = measured[f"{FEW:,}"], measured[f"{counts[-1]:,}"]
            what = f"{operation}, beside {counts[-1]:,} finished jobs against {FEW:,}"
            result.goals.append(Goal(what, ratios(most, fewest), 1.15, "×", at_least=False))
            if operation == "find of a user":
                result.goals.append(
                    Goal(f"{operation}, in all", most, MAX_MILLISECONDS, "ms", at_least=False)
                )
            for name, values in measured.items():
                result.series.append(Series(f"{operation}, {name} jobs", values, f"ms ({operation})"))
            for name, rounds in costs.items():
                written = [cost.wal for cost in rounds]
                if any(written):
                    result.series.append(
                        Series(f"{operation}, {name} jobs: WAL", written, f"bytes ({operation})")
                    )
            line = [(float(count), summary(measured[f"{count:,}"]).median) for count in counts]
            if operation == OPERATIONS[0]:
                result.curves = [
                    Curve("One operation beside so many finished jobs", "finished jobs", "ms", {}, True)
                ]
            result.curves[0].lines[operation] = line
    return result


_SPREAD: dict[str, Any] = {
    # One second apart, into the past.
    name: func.clock_timestamp() - text("number * interval '1 second'")
    for name in ("submitted", "started", "finished")
} | {"username": func.concat("user ", text("number % 1000"))}


def _sizes(url: str, count: int) -> dict[str, float]:
    """Return the bytes of a finished job's row, of its indexes, and of its events."""
    statement = (
        "SELECT pg_table_size('jobhandle_job'), pg_indexes_size('jobhandle_job'), "
        "pg_total_relation_size('jobhandle_job_event')"
    )
    names = ("its row", "its row's indexes", "its three events, and their indexes")
    return dict(zip(names, (int(size) / count for size in execute(url, statement)[0]), strict=True))


@dataclass(frozen=True)
class Cost:
    """The mean of some repetitions of an operation."""

    milliseconds: float
    wal: float
    """Bytes of PostgreSQL's write-ahead log."""


class Table:
    """Measures operations on one database."""

    def __init__(self, peer: Ours) -> None:
        self._peer = peer
        self._connection = psycopg.connect(peer.sandbox.dsn, autocommit=True)
        self._store = peer.jobs._runtime.store
        self._worker = Worker("bench@localhost", str(uuid.uuid4()), 1)
        self._store.leases.renew(self._worker)
        task = peer.app.tasks[TASK]
        peer.jobs.submit_many([task.s(number) for number in range(JOBS_OF_USER)], username=USER)
        peer.jobs.cancel_many(username=USER)

    def close(self) -> None:
        self._connection.close()

    def done(self) -> int:
        """Submit, claim and finish a job; return its id."""
        (run,) = self._runs(1)
        self._claim(run)
        self._finish(run)
        return run.job_id

    def cost(self, operation: str, count: int) -> Cost:
        """Measure an operation; the mean of `count` repetitions."""
        self._store.leases.renew(self._worker)
        match operation:
            case "submit":
                cost = self._measured(self._peer.submit, list(range(count)))
            case "claim":
                runs = self._runs(count)
                cost = self._measured(self._claim, runs)
                self._end(runs)
            case "finish":
                runs = self._runs(count)
                for run in runs:
                    self._claim(run)
                cost = self._measured(self._finish, runs)
            case "settle":
                runs = [self._run(self._submit_chain()) for _ in range(count)]
                for run in runs:
                    self._claim(run)
                cost = self._measured(self._finish, runs)
            case "cancel":
                ids = [run.job_id for run in self._runs(count)]
                handles = [self._peer.jobs.attach(job_id) for job_id in ids]
                cost = self._measured(lambda handle: handle.cancel_job(), handles)
            case "find of a user":
                cost = self._measured(
                    lambda username: self._peer.jobs.find(username=username), [USER] * count
                )
            case "find":
                cost = self._measured(
                    lambda status: self._peer.jobs.find(status=status), [None, "Finished"] * (count // 2)
                )
            case _:
                self._peer.purge()
                time.sleep(0.01)
                cost = self._measured(self._sweep, list(range(count)))
        self._peer.purge()
        return cost

    def _measured(self, operation: Callable[[Any], object], each: list[Any]) -> Cost:
        before = self._wal_position()
        started = clock()
        for value in each:
            operation(value)
        taken = (clock() - started) * 1000
        return Cost(taken / len(each), (self._wal_position() - before) / len(each))

    def _wal_position(self) -> float:
        row = self._connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()
        assert row
        return float(row[0])

    def _runs(self, count: int) -> list[Run]:
        return [self._run(self._peer.submit(number)) for number in range(count)]

    def _run(self, job_id: int) -> Run:
        task_id = self._peer.jobs.attach(job_id).get_job().task_id
        return Run(job_id, str(task_id), 1, str(uuid.uuid4()), self._worker)

    def _submit_chain(self) -> int:
        """Submit two chained jobs; return the id of the first."""
        task = self._peer.app.tasks[TASK]
        chain_id = self._peer.handle.submit(chain(task.si(1), task.si(2)))
        (first,) = [job for job in self._peer.jobs.find(root=chain_id) if not job.blocked]
        return first.id

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


def _cost(table: Table, operation: str) -> Callable[[], Cost]:
    return lambda: table.cost(operation, REPETITIONS)
