"""Two calls on one row, with real threads and locks: exactly one wins, in either order.

Each pair runs concurrently many times, and, on a server, queued behind a lock in either order. A call of
the sweeper does not queue: it skips a locked row.
"""

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import event

from jobhandle_celery.errors import DatabaseUnavailableError
from jobhandle_celery.schema import clock, job
from jobhandle_celery.schema import worker as worker_table
from jobhandle_celery.status import FINAL, JobStatus
from jobhandle_celery.store import ClaimRejected, Run
from tests.store.harness import FAILURE, LEASE, TASK, Harness
from tests.store.racing import Contender, has_lines, in_line, in_the_middle, locked, race, steps, waiting
from tests.support import eventually

LAPSE = LEASE.total_seconds() + 1
ROUNDS = 8


@dataclass
class Pair:
    """Two calls on one job, and whether each won."""

    first: Contender
    second: Contender
    job_id: int
    run: Run | None = None
    won: Callable[[Any], bool] = bool
    ends_as: dict[int, set[JobStatus]] = field(default_factory=dict)
    """The final statuses that are allowed if the first (0) or the second (1) won."""
    skips: int | None = None
    """The call that skips a locked row on a server, so that the other wins."""


def claim_claim(harness: Harness) -> Pair:
    job_id = harness.submit()
    first, second = (harness.key(job_id, harness.worker(name)) for name in ("w1", "w2"))
    return Pair(
        lambda: harness.store.runs.claim(first, TASK),
        lambda: harness.store.runs.claim(second, TASK),
        job_id,
        won=lambda answer: isinstance(answer, Run),
    )


def claim_cancel(harness: Harness) -> Pair:
    job_id = harness.submit()
    run = harness.key(job_id, harness.worker())
    return Pair(
        lambda: isinstance(harness.store.runs.claim(run, TASK), Run),
        lambda: harness.store.control.cancel(job_id, None, terminate=False) is JobStatus.CANCELLED,
        job_id,
        ends_as={0: {JobStatus.RUNNING}, 1: {JobStatus.CANCELLED}},
    )


def claim_set_running(harness: Harness) -> Pair:
    job_id = harness.submit()
    run = harness.key(job_id, harness.worker())

    def set_running() -> bool:
        return harness.store.control.set_status(job_id, JobStatus.RUNNING, str(uuid.uuid4()), None, None) == (
            JobStatus.SUBMITTED,
            True,
        )

    return Pair(lambda: isinstance(harness.store.runs.claim(run, TASK), Run), set_running, job_id)


def finish_reap(harness: Harness) -> Pair:
    run = harness.run(harness.submit(max_attempts=2))
    harness.pass_time(seconds=LAPSE)
    return Pair(
        lambda: harness.store.runs.finish(run, "1"),
        lambda: harness.reap(str(run.worker.worker_uid)),
        run.job_id,
        ends_as={0: {JobStatus.FINISHED}, 1: {JobStatus.REQUEUED}},
        skips=1,
    )


def finish_end(harness: Harness) -> Pair:
    run = harness.run(harness.submit())

    def end() -> bool:
        return harness.store.control.set_status(run.job_id, JobStatus.ERROR, str(uuid.uuid4()), None, None)[1]

    return Pair(
        lambda: harness.store.runs.finish(run, "1"),
        end,
        run.job_id,
        ends_as={0: {JobStatus.FINISHED}, 1: {JobStatus.ERROR}},
    )


def lose_fail(harness: Harness) -> Pair:
    run = harness.run(harness.submit())
    return Pair(
        lambda: harness.store.recovery.lose(run, "gone", run.worker),
        lambda: harness.store.runs.fail(run, FAILURE),
        run.job_id,
    )


def resubmit_resubmit(harness: Harness) -> Pair:
    job_id = harness.submit()
    harness.store.control.cancel(job_id, None, terminate=False)

    def resubmit() -> bool:
        return harness.store.control.resubmit(job_id, str(uuid.uuid4()), None) == [job_id]

    return Pair(resubmit, resubmit, job_id)


def release_release(harness: Harness) -> Pair:
    job_id = harness.submit(held=True)
    return Pair(lambda: harness.release(job_id), lambda: harness.release(job_id), job_id)


def expire_claim(harness: Harness) -> Pair:
    job_id = harness.submit()
    run = harness.key(job_id, harness.worker())
    harness.write(job_id, expires=harness.row(job_id)["submitted"], due_at=harness.row(job_id)["submitted"])
    return Pair(
        harness.store.sweep.expire,
        lambda: harness.store.runs.claim(run, TASK) is run,
        job_id,
        ends_as={0: {JobStatus.CANCELLED}},
    )


def report_report(harness: Harness) -> Pair:
    job_id = harness.place(JobStatus.QUEUED).job_id
    harness.store.control.cancel(job_id, None, terminate=False)
    task_id = harness.row(job_id)["task_id"]
    return Pair(
        lambda: harness.store.runs.mark_revoke_reported(job_id, task_id),
        lambda: harness.store.runs.mark_revoke_reported(job_id, task_id),
        job_id,
    )


PAIRS = (
    claim_claim,
    claim_cancel,
    claim_set_running,
    finish_reap,
    finish_end,
    lose_fail,
    resubmit_resubmit,
    release_release,
    report_report,
)


def judge(harness: Harness, pair: Pair, answers: list[Any]) -> None:
    won = [pair.won(answer) for answer in answers]
    assert won.count(True) == 1, answers
    allowed = pair.ends_as.get(won.index(True))
    assert allowed is None or harness.status(pair.job_id) in allowed
    moves = harness.events(pair.job_id)
    assert len([status for status in moves if status in FINAL]) <= 1 + moves.count(JobStatus.RESUBMITTED)


@pytest.mark.parametrize("pair_of", PAIRS, ids=lambda pair_of: str(pair_of.__name__))
def test_exactly_one_of_two_concurrent_operations_wins(
    harness: Harness, pair_of: Callable[[Harness], Pair]
) -> None:
    for _ in range(ROUNDS):
        pair = pair_of(harness)
        judge(harness, pair, race(pair.first, pair.second))


@pytest.mark.parametrize("order", [1, -1], ids=["as named", "reversed"])
@pytest.mark.parametrize("pair_of", PAIRS, ids=lambda pair_of: str(pair_of.__name__))
def test_exactly_one_of_two_queued_operations_wins(
    harness: Harness, pair_of: Callable[[Harness], Pair], order: int
) -> None:
    pair = pair_of(harness)
    answers = in_line(harness, job, [pair.first, pair.second][::order])[::order]
    judge(harness, pair, answers)
    if pair.skips is not None and has_lines(harness):
        assert pair.won(answers[1 - pair.skips]), "the one that waits"
    elif harness.database.engine.dialect.name == "postgresql":
        # MariaDB may roll back the first in the queue to end a deadlock; its retry is then the last.
        assert pair.won(answers[0] if order == 1 else answers[1]), "the first in line"


@pytest.mark.parametrize("order", [1, -1])
def test_expired_job_is_cancelled_once(harness: Harness, order: int) -> None:
    pair = expire_claim(harness)
    answers = in_line(harness, job, [pair.first, pair.second][::order])[::order]
    assert not answers[1]
    assert harness.events(pair.job_id) == [JobStatus.SUBMITTED, JobStatus.CANCELLED]


@pytest.mark.parametrize("order", [1, -1])
def test_cancel_against_a_retry_ends_cancelled_in_either_order(harness: Harness, order: int) -> None:
    run = harness.run(harness.submit())
    contenders: list[Contender] = [
        lambda: harness.store.control.cancel(run.job_id, None, terminate=False),
        lambda: harness.store.runs.retry(run, "{}", None, None, "again"),
    ]
    cancelled, retried = in_line(harness, job, contenders[::order])[::order]
    assert harness.status(run.job_id) is JobStatus.CANCELLED
    assert (cancelled, retried) in [
        (JobStatus.RUNNING, JobStatus.CANCELLED),
        (JobStatus.CANCELLED, JobStatus.REQUEUED),
    ]


def test_cancel_against_resubmit_returns_a_valid_status(common_postgresql_url: str, namespace: str) -> None:
    """The job is final for the cancel's first statement, and resubmitted before its second.

    On PostgreSQL, where each statement commits alone; elsewhere the first one locks the row.
    """
    harness = Harness(common_postgresql_url, namespace=namespace)
    other = Harness(harness.url, namespace=namespace)
    job_id = harness.place(JobStatus.FINISHED).job_id
    resubmitted: list[bool] = []

    def in_between(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "SELECT jobhandle_job.status_id" in statement and not resubmitted:
            resubmitted.append(other.store.control.resubmit(job_id, str(uuid.uuid4()), None) == [job_id])

    event.listen(harness.database.engine, "before_cursor_execute", in_between)
    cancelled = harness.store.control.cancel(job_id, None, terminate=False)
    other.close()
    assert resubmitted == [True]
    assert cancelled is harness.status(job_id) is JobStatus.CANCELLED
    harness.close()


def test_renewal_against_reap_keeps_jobs_or_learns_the_loss(harness: Harness) -> None:
    for _ in range(ROUNDS):
        run = harness.run(harness.submit(max_attempts=2))
        harness.pass_time(seconds=LAPSE)
        renewed, lost = race(
            lambda run=run: harness.store.leases.renew(run.worker),  # type: ignore[misc]  # mypy infers no lambda's defaults
            lambda run=run: harness.reap(str(run.worker.worker_uid)),  # type: ignore[misc]  # mypy infers no lambda's defaults
        )
        assert renewed == (not lost)
        assert harness.status(run.job_id) is (JobStatus.RUNNING if renewed else JobStatus.REQUEUED)


def test_reap_whose_jobs_are_locked_leaves_their_worker(server_harness: Harness) -> None:
    """The reap skips them; the worker may renew, or the next reap finds them by its row."""
    harness = server_harness
    run = harness.run(harness.submit(max_attempts=2))
    harness.pass_time(seconds=LAPSE)
    with locked(harness, job):
        assert harness.reap(str(run.worker.worker_uid)) == []
        assert harness.lapsed_workers() == [str(run.worker.worker_uid)]
    assert harness.reap(str(run.worker.worker_uid))
    assert harness.status(run.job_id) is JobStatus.REQUEUED


def test_renewal_behind_a_reap_learns_the_loss(harness: Harness) -> None:
    """The renewal waits for the reap, which is about to commit."""

    def lapsed() -> Run:
        run = harness.run(harness.submit(max_attempts=2))
        harness.pass_time(seconds=LAPSE)
        return run

    harness.trust_leases()
    former = lapsed()
    commit = steps(harness, lambda: harness.reap(str(former.worker.worker_uid)))
    run = lapsed()
    lost, renewed = in_the_middle(
        harness,
        commit,
        lambda: harness.reap(str(run.worker.worker_uid)),
        lambda: harness.store.leases.renew(run.worker),
    )
    assert [job.job_id for job in lost] == [run.job_id]
    assert not renewed
    assert harness.status(run.job_id) is JobStatus.REQUEUED


def test_reap_does_not_wait_for_a_worker_that_is_renewing(server_harness: Harness) -> None:
    """Mutant 11: the reap checks the lease in its own transaction, under a lock."""
    harness = server_harness
    run = harness.run(harness.submit(max_attempts=2))
    harness.pass_time(seconds=LAPSE)
    with locked(harness, worker_table):
        assert harness.reap(str(run.worker.worker_uid)) == []
    harness.store.leases.renew(run.worker)
    assert harness.reap(str(run.worker.worker_uid)) == []


def test_claim_whose_lease_ends_behind_a_lock_is_recovered(server_harness: Harness) -> None:
    """On PostgreSQL the claim checks the lease before it waits for the row, on MariaDB before or after.

    SQLite has one lock: no write comes between a claim's check and its commit.
    """
    harness = server_harness
    job_id = harness.submit()
    me = harness.worker()
    run = harness.key(job_id, me)
    mine = worker_table.c.worker_uid == me.worker_uid

    def end_lease() -> None:
        with harness.database.transaction() as connection:
            connection.execute(worker_table.update().where(mine).values(lease_until=clock(-1.0)))

    with ThreadPoolExecutor(1) as pool:
        with locked(harness, job):
            claiming = pool.submit(harness.store.runs.claim, run, TASK)
            eventually(lambda: waiting(harness) == 1)
            # MariaDB may lock the lease before it waits for the row: then it is ended after the claim.
            with suppress(DatabaseUnavailableError):
                end_lease()
                assert harness.lapsed_workers() == [me.worker_uid]
                harness.reap(str(me.worker_uid))
        answer = claiming.result(timeout=30)
    end_lease()
    for worker_uid in harness.lapsed_workers():
        harness.reap(worker_uid)
    assert isinstance(answer, ClaimRejected) or harness.status(job_id) is JobStatus.ERROR
