"""One durable job by `handle.submit`, beside what else a submit can cost."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery import Celery
from sqlalchemy import Engine, create_engine, insert

from jobhandle_celery import schema
from jobhandle_celery.status import JobStatus

from ..arithmetic import ratios
from ..marks import clock
from ..peers import ALL, Bare, Ours, Peer, Place
from ..peers.celery_app import TASK
from ..result import Goal, Result, Series
from ..stage import Stage

TITLE = "Submit one job"
METHOD = """One producer, one job at a time, no worker. The floor is what no durable submit can avoid,
measured in the same rounds: one row of the job table inserted and committed by SQLAlchemy Core (one statement
on one connection in autocommit mode, all columns that a submit fills, no event row), and one message built
and published by what `apply_async` itself calls (`app.amqp.as_task_v2`, `app.amqp.send_task_message`, on one
producer that is kept). It neither checks nor routes nor encodes, and marks nothing as sent. Processor time is
the producer's own."""

FLOOR, INSERT, PUBLISH = "the floor: INSERT + COMMIT, publish", "INSERT + COMMIT alone", "publish alone"


def run(stage: Stage) -> Result:
    """Measure."""
    result = Result("submit", TITLE, METHOD)
    jobs = stage.amount(600, 150)
    with stage.peers(ALL, result.missing) as peers, stage.place("floor") as place:
        floor = Floor(place)
        contestants = {name: _loop(peer, jobs) for name, peer in peers.items()}
        contestants |= {
            FLOOR: lambda: paced(jobs, floor.both),
            INSERT: lambda: paced(jobs, floor.insert),
            PUBLISH: lambda: paced(jobs, floor.publish),
        }
        measured = stage.contest(contestants, 9)
        floor.close()
    rates = {name: [each.rate for each in rounds] for name, rounds in measured.items()}
    ours, bare = rates[Ours.name], rates[Bare.name]
    result.goals = [
        Goal("rate of `submit` against bare `apply_async`", ratios(ours, bare), 0.5, "×"),
        Goal("rate of `submit` against the floor", ratios(ours, rates[FLOOR]), 0.85, "×"),
    ]
    result.series = [Series(name, values, "jobs/s") for name, values in rates.items()]
    result.series += [
        Series(f"{name}: processor", [each.processor for each in rounds], "µs a job")
        for name, rounds in measured.items()
    ]
    return result


@dataclass(frozen=True)
class Pace:
    """What a producer did."""

    rate: float
    """Jobs a second."""
    processor: float
    """Microseconds of its own processor time a job."""


def paced(jobs: int, one: Callable[[int], object]) -> Pace:
    """Measure so many, one after the other."""
    begun, spent = clock(), time.process_time()
    for number in range(jobs):
        one(number)
    return Pace(jobs / (clock() - begun), (time.process_time() - spent) * 1e6 / jobs)


def _loop(peer: Peer, jobs: int) -> Callable[[], Pace]:
    def loop() -> Pace:
        measured = paced(jobs, peer.submit)
        peer.purge()
        return measured

    return loop


class Floor:
    """The least that a durable submit does."""

    def __init__(self, place: Place) -> None:
        self._engine: Engine = create_engine(place.database_url)
        schema.metadata.create_all(self._engine)
        self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._app = Celery("floor", broker=place.broker_url, set_as_current=False)
        self._broker = self._app.connection_for_write()
        self._producer: Any = self._app.amqp.Producer(self._broker, auto_declare=False)
        self._statement = insert(schema.job).values(
            submitted=schema.clock(), due_at=schema.clock(), kwargs="{}", routing="{}", message=""
        )
        self._ids = 0

    def insert(self, number: int) -> None:
        """Insert a row, and commit."""
        self._ids += 1
        row = {
            "namespace": "floor",
            "task": TASK,
            "task_id": f"00000000-0000-4000-8000-{self._ids:012d}",
            "args": f"[{number}]",
            "queue": "celery",
            "max_attempts": 1,
            "attempt": 0,
            "status_id": JobStatus.SUBMITTED,
        }
        self._connection.execute(self._statement, row)

    def publish(self, number: int) -> None:
        """Build a message and publish it."""
        message = self._app.amqp.as_task_v2(f"{number}", TASK, (number,), {})
        self._app.amqp.send_task_message(self._producer, TASK, message, queue=self._app.amqp.queues["celery"])

    def both(self, number: int) -> None:
        """Do both."""
        self.insert(number)
        self.publish(number)

    def close(self) -> None:
        """Close both connections."""
        self._connection.close()
        self._engine.dispose()
        self._broker.release()
        self._app.close()
