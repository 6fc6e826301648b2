"""A process as the store sees it: it settles after each commit, and keeps what it would publish."""

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from sqlalchemy import func, select

from jobhandle_celery.schema import job, job_event
from jobhandle_celery.settler import Settler
from jobhandle_celery.store import ClaimRejected, NewMember, PendingMessage, Run, Worker
from jobhandle_celery.store.statements import Guard
from tests.store.harness import FAILURE, TASK, Harness


class TreeProcess:
    """Runs members of trees on a harness, from any number of threads."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.me: Worker = harness.worker()
        self.ready: list[int] = []
        """Jobs that became ready, in order; a job that becomes ready twice is there twice."""
        self._settler = Settler(harness.store, self._note_ready)
        self._local = threading.local()
        harness.database.on_unsettled = self.settle

    def _note_ready(self, messages: Sequence[PendingMessage]) -> None:
        self.ready += [message.job_id for message in messages]

    def meet_before_settle(self, gate: threading.Barrier) -> None:
        """Let this thread wait at the gate between its next commit that ends a job and its settle."""
        self._local.gate = gate

    def settle(self, job_ids: list[int]) -> None:
        """Settle jobs, and what ends thereby, as after a commit."""
        if getattr(self._local, "dies", False):
            return
        gate: threading.Barrier | None = getattr(self._local, "gate", None)
        if gate is not None:
            self._local.gate = None
            gate.wait()
        self._settler.settle(job_ids)

    @contextmanager
    def dying(self) -> Iterator[None]:
        """Let this thread settle nothing within the block, as a process that dies."""
        self._local.dies = True
        yield
        self._local.dies = False

    def claim(self, job_id: int) -> Run | None:
        """Claim a job with the message that fits its row; None if the claim is refused."""
        won = self.harness.store.runs.claim(self.harness.key(job_id, self.me), TASK)
        return None if isinstance(won, ClaimRejected) else won

    def finish(self, run: Run) -> None:
        assert self.harness.store.runs.finish(run, "1")

    def fail(self, run: Run) -> None:
        assert self.harness.store.runs.fail(run, FAILURE)

    def settle_what_is_left(self) -> None:
        """Settle what a sweep would, after some time."""
        for _ in range(50):
            self.harness.pass_time(minutes=2)
            self.harness.store.leases.renew(self.me)
            due = self.harness.store.settling.reserve_unsettled(500)
            if not any(due):
                return
            self._settler.settle(due.ended)
            self.ready += self.harness.store.settling.arm(due.blocked)
        raise AssertionError(f"they are due again and again: {due}")

    # Rows.

    def unsettled(self) -> int:
        """Return how many rows are still to be settled."""
        return self._count(job.c.unsettled)

    def unfinished(self) -> int:
        return self._count(job.c.finished.is_(None))

    def _count(self, which: Guard) -> int:
        here = job.c.namespace == self.harness.settings.namespace
        with self.harness.database.autocommit() as db:
            return int(db.execute(select(func.count()).select_from(job).where(here, which)).scalar_one())

    def events(self, message: str) -> Counter[int]:
        """Return how many events with this message each job has."""
        counted = (
            select(job_event.c.job_id, func.count().label("times"))
            .join(job, job.c.id == job_event.c.job_id)
            .where(job.c.namespace == self.harness.settings.namespace, job_event.c.message == message)
            .group_by(job_event.c.job_id)
        )
        with self.harness.database.autocommit() as db:
            return Counter({row.job_id: row.times for row in db.execute(counted)})


def many(tree: Sequence[NewMember], count: int) -> list[NewMember]:
    """Return the rows of a tree several times."""
    return [
        replace(
            new,
            job=replace(new.job, task_id=f"{new.job.task_id[:-6]}{number:06}"),
            parent=None if new.parent is None else new.parent + by,
            needs=tuple((need + by, position) for need, position in new.needs),
        )
        for number in range(count)
        for by in [number * len(tree)]
        for new in tree
    ]
