"""One job and two workers, in the store and in the model: a scene that can be restored."""

import pickle
import uuid
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Table, delete, insert, select

from jobhandle_celery.schema import clock, job, job_event, sweep, worker
from jobhandle_celery.store import Worker
from tests.store.act import KEY, Act, Cast, key
from tests.store.assertions import Found, agree, look
from tests.store.harness import Harness, Row, new_job
from tests.store.model import GRACE, REPUBLISH_AFTER, Model
from tests.store.model_leases import LEASE


def minutes(amount: float) -> timedelta | None:
    return timedelta(minutes=amount) if amount else None


DURATIONS: dict[str, Any] = {
    "publish_grace": minutes(GRACE),
    "republish_after": minutes(REPUBLISH_AFTER),
    "lease": minutes(LEASE),
}


Call = tuple[Act, str]


class World:
    """A namespace with one job."""

    def __init__(self, harness: Harness, given: dict[str, Any]) -> None:
        self.harness = harness
        self.store = harness.store
        self.model = Model()
        me, other = (Worker(name, str(uuid.uuid4()), 1) for name in ("w1", "w2"))
        self._renew(me, other)
        new = new_job(
            unique_key=KEY,
            max_attempts=given.get("attempts", 1),
            held=given.get("held", False),
            scheduled_for=minutes(given.get("delay", 0)),
            expires=minutes(given.get("life", 0)),
        )
        self.job_id = self.store.inserter.submit([new])[0].job_id
        self.model.submit(self.job_id, new.task_id, KEY, **given)
        message = harness.message(self.job_id)
        run = key(message, me)
        self.cast = Cast(self.store, other, message, run, message, key(message, other), key(message, other))
        self._saved: list[tuple[Table, list[Row]]] = []
        self._saved_at: datetime

    # The scene.

    def play(self, act: Act) -> None:
        """Make a call; store and model must agree."""
        once = call(act)
        answer = self.ask(once)
        expected, self.model = self.expected(once)
        assert [answer] == expected
        agree(look(self.harness), self.model)
        sent = self.harness.message(self.job_id)
        self.cast = replace(self.cast, sent=sent, next_run=key(sent, self.cast.other))

    def pass_time(self, amount: float, *, renewing: bool = True) -> None:
        self.harness.pass_time(minutes=amount)
        self.model.now += amount
        self._renew(*([self.cast.me, self.cast.other] if renewing else [self.cast.other]))

    def steady_sweeps(self) -> None:
        """Make leases trusted, and another pass due."""
        self.harness.trust_leases()
        self.model.trust_leases()
        self.harness.pass_time(minutes=1)
        self.model.now += 1

    def _renew(self, *workers: Worker) -> None:
        for renewed in workers:
            self.store.leases.renew(renewed)
            self.model.renew(str(renewed.worker_uid))

    def save(self) -> None:
        """Save all rows of the scene."""
        with self.harness.database.autocommit() as connection:
            self._saved_at = connection.execute(select(clock())).scalar_one()
            for table, which in self._tables():
                rows = connection.execute(select(table).where(which)).mappings()
                self._saved.append((table, [dict(row) for row in rows]))

    def restore(self) -> None:
        """Restore the saved rows, with every time relative to now."""
        with self.harness.database.transaction() as connection:
            passed = connection.execute(select(clock())).scalar_one() - self._saved_at
            for table, which in reversed(self._tables()):
                connection.execute(delete(table).where(which))
            for table, rows in self._saved:
                connection.execute(insert(table), [_later(row, passed) for row in rows])

    def _tables(self) -> list[tuple[Table, ColumnElement[bool]]]:
        here = self.harness.settings.namespace
        jobs = select(job.c.id).where(job.c.namespace == here)
        return [
            (worker, worker.c.namespace == here),
            (sweep, sweep.c.namespace == here),
            (job, job.c.namespace == here),
            (job_event, job_event.c.job_id.in_(jobs)),
        ]

    # Calls and outcomes.

    def ask(self, call: Call) -> Any:
        act, token = call
        return act.ask(self.cast, token)

    def expected(self, *calls: Call) -> tuple[list[Any], Model]:
        """Return the model's answers to these calls in order, and the model after them."""
        model = pickle.loads(pickle.dumps(self.model))  # in a fifth of deepcopy's time
        return [act.expected(self.cast, model, token) for act, token in calls], model

    def disagreement(self, model: Model, found: Found) -> str:
        """Return the differences from the model; empty without any."""
        try:
            agree(found, model)
        except AssertionError as error:
            return str(error) or "the rows"
        return ""


def call(act: Act) -> Call:
    return act, str(uuid.uuid4())


def _later(row: Row, passed: timedelta) -> Row:
    return {name: value + passed if isinstance(value, datetime) else value for name, value in row.items()}
