"""Two calls on one row, with real threads and locks: exactly one wins, in either order.

Each pair runs concurrently many times, and, on a server, queued behind a lock in either order. A call of
the sweep does not queue: it skips a locked row.
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
from tests.store.harness import FAILURE, LEASE, TASK, Bench
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


def claim_claim(bench: Bench) -> Pair:
    job_id = bench.submit()
    first, second = (bench.key(job_id, bench.worker(name)) for name in ("w1", "w2"))
    return Pair(
        lambda: bench.store.runs.claim(first, TASK),
        lambda: bench.store.runs.claim(second, TASK),
        job_id,
        won=lambda answer: isinstance(answer, Run),
    )


def claim_cancel(bench: Bench) -> Pair:
    job_id = bench.submit()
    run = bench.key(job_id, bench.worker())
    return Pair(
        lambda: isinstance(bench.store.runs.claim(run, TASK), Run),
        lambda: bench.store.control.cancel(job_id, None, terminate=False) is JobStatus.CANCELLED,
        job_id,
        ends_as={0: {JobStatus.RUNNING}, 1: {JobStatus.CANCELLED}},
    )


def claim_take(bench: Bench) -> Pair:
    job_id = bench.submit()
    run = bench.key(job_id, bench.worker())

    def take() -> bool:
        return bench.store.control.set_status(job_id, JobStatus.RUNNING, str(uuid.uuid4()), None, None) == (
            JobStatus.SUBMITTED,
            True,
        )

    return Pair(lambda: isinstance(bench.store.runs.claim(run, TASK), Run), take, job_id)


def finish_reap(bench: Bench) -> Pair:
    run = bench.run(bench.submit(max_attempts=2))
    bench.pass_time(seconds=LAPSE)
    return Pair(
        lambda: bench.store.runs.finish(run, "1"),
        lambda: bench.reap(str(run.worker.worker_uid)),
        run.job_id,
        ends_as={0: {JobStatus.FINISHED}, 1: {JobStatus.REQUEUED}},
        skips=1,
    )


def finish_end(bench: Bench) -> Pair:
    run = bench.run(bench.submit())

    def end() -> bool:
        return bench.store.control.set_status(run.job_id, JobStatus.ERROR, str(uuid.uuid4()), None, None)[1]

    return Pair(
        lambda: bench.store.runs.finish(run, "1"),
        end,
        run.job_id,
        ends_as={0: {JobStatus.FINISHED}, 1: {JobStatus.ERROR}},
    )


def lose_fail(bench: Bench) -> Pair:
    run = bench.run(bench.submit())
    return Pair(
        lambda: bench.store.recovery.lose(run, "gone", run.worker),
        lambda: bench.store.runs.fail(run, FAILURE),
        run.job_id,
    )


def resubmit_resubmit(bench: Bench) -> Pair:
    job_id = bench.submit()
    bench.store.control.cancel(job_id, None, terminate=False)

    def resubmit() -> bool:
        return bench.store.control.resubmit(job_id, str(uuid.uuid4()), None) == [job_id]

    return Pair(resubmit, resubmit, job_id)


def release_release(bench: Bench) -> Pair:
    job_id = bench.submit(held=True)
    return Pair(lambda: bench.release(job_id), lambda: bench.release(job_id), job_id)


def expire_claim(bench: Bench) -> Pair:
    job_id = bench.submit()
    run = bench.key(job_id, bench.worker())
    bench.write(job_id, expires=bench.row(job_id)["submitted"], due_at=bench.row(job_id)["submitted"])
    return Pair(
        bench.store.sweep.expire,
        lambda: bench.store.runs.claim(run, TASK) is run,
        job_id,
        ends_as={0: {JobStatus.CANCELLED}},
    )


def report_report(bench: Bench) -> Pair:
    job_id = bench.place(JobStatus.QUEUED).job_id
    bench.store.control.cancel(job_id, None, terminate=False)
    task_id = bench.row(job_id)["task_id"]
    return Pair(
        lambda: bench.store.runs.mark_revoke_reported(job_id, task_id),
        lambda: bench.store.runs.mark_revoke_reported(job_id, task_id),
        job_id,
    )


PAIRS = (
    claim_claim,
    claim_cancel,
    claim_take,
    finish_reap,
    finish_end,
    lose_fail,
    resubmit_resubmit,
    release_release,
    report_report,
)


def judge(bench: Bench, pair: Pair, answers: list[Any]) -> None:
    won = [pair.won(answer) for answer in answers]
    assert won.count(True) == 1, answers
    allowed = pair.ends_as.get(won.index(True))
    assert allowed is None or bench.status(pair.job_id) in allowed
    moves = bench.events(pair.job_id)
    assert len([status for status in moves if status in FINAL]) <= 1 + moves.count(JobStatus.RESUBMITTED)


@pytest.mark.parametrize("pair_of", PAIRS, ids=lambda pair_of: str(pair_of.__name__))
def test_exactly_one_of_two_concurrent_operations_wins(
    bench: Bench, pair_of: Callable[[Bench], Pair]
) -> None:
    for _ in range(ROUNDS):
        pair = pair_of(bench)
        judge(bench, pair, race(pair.first, pair.second))


@pytest.mark.parametrize("order", [1, -1], ids=["as named", "reversed"])
@pytest.mark.parametrize("pair_of", PAIRS, ids=lambda pair_of: str(pair_of.__name__))
def test_exactly_one_of_two_queued_operations_wins(
    bench: Bench, pair_of: Callable[[Bench], Pair], order: int
) -> None:
    pair = pair_of(bench)
    answers = in_line(bench, job, [pair.first, pair.second][::order])[::order]
    judge(bench, pair, answers)
    if pair.skips is not None and has_lines(bench):
        assert pair.won(answers[1 - pair.skips]), "the one that waits"
    elif bench.database.engine.dialect.name == "postgresql":
        # MariaDB may roll back the first in the queue to end a deadlock; its retry is then the last.
        assert pair.won(answers[0] if order == 1 else answers[1]), "the first in line"


@pytest.mark.parametrize("order", [1, -1])
def test_expired_job_is_cancelled_once(bench: Bench, order: int) -> None:
    pair = expire_claim(bench)
    answers = in_line(bench, job, [pair.first, pair.second][::order])[::order]
    assert not answers[1]
    assert bench.events(pair.job_id) == [JobStatus.SUBMITTED, JobStatus.CANCELLED]


@pytest.mark.parametrize("order", [1, -1])
def test_cancel_against_a_retry_ends_cancelled_in_either_order(bench: Bench, order: int) -> None:
    run = bench.run(bench.submit())
    contenders: list[Contender] = [
        lambda: bench.store.control.cancel(run.job_id, None, terminate=False),
        lambda: bench.store.runs.retry(run, "{}", None, None, "again"),
    ]
    cancelled, retried = in_line(bench, job, contenders[::order])[::order]
    assert bench.status(run.job_id) is JobStatus.CANCELLED
    assert (cancelled, retried) in [
        (JobStatus.RUNNING, JobStatus.CANCELLED),
        (JobStatus.CANCELLED, JobStatus.REQUEUED),
    ]


def test_cancel_against_resubmit_returns_a_valid_status(common_postgresql_url: str, namespace: str) -> None:
    """The job is final for the cancel's first statement, and resubmitted before its second.

    On PostgreSQL, where each statement commits alone; elsewhere the first one locks the row.
    """
    bench = Bench(common_postgresql_url, namespace=namespace)
    other = Bench(bench.url, namespace=namespace)
    job_id = bench.place(JobStatus.FINISHED).job_id
    resubmitted: list[bool] = []

    def in_between(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "SELECT jobhandle_job.status_id" in statement and not resubmitted:
            resubmitted.append(other.store.control.resubmit(job_id, str(uuid.uuid4()), None) == [job_id])

    event.listen(bench.database.engine, "before_cursor_execute", in_between)
    cancelled = bench.store.control.cancel(job_id, None, terminate=False)
    other.close()
    assert resubmitted == [True]
    assert cancelled is bench.status(job_id) is JobStatus.CANCELLED
    bench.close()


def test_renewal_against_reap_keeps_jobs_or_learns_the_loss(bench: Bench) -> None:
    for _ in range(ROUNDS):
        run = bench.run(bench.submit(max_attempts=2))
        bench.pass_time(seconds=LAPSE)
        renewed, lost = race(
            lambda run=run: bench.store.leases.renew(run.worker),  # type: ignore[misc]  # mypy infers no lambda's defaults
            lambda run=run: bench.reap(str(run.worker.worker_uid)),  # type: ignore[misc]  # mypy infers no lambda's defaults
        )
        assert renewed == (not lost)
        assert bench.status(run.job_id) is (JobStatus.RUNNING if renewed else JobStatus.REQUEUED)


def test_reap_whose_jobs_are_locked_leaves_their_worker(server_bench: Bench) -> None:
    """The reap skips them; the worker may renew, or the next reap finds them by its row."""
    bench = server_bench
    run = bench.run(bench.submit(max_attempts=2))
    bench.pass_time(seconds=LAPSE)
    with locked(bench, job):
        assert bench.reap(str(run.worker.worker_uid)) == []
        assert bench.lapsed_workers() == [str(run.worker.worker_uid)]
    assert bench.reap(str(run.worker.worker_uid))
    assert bench.status(run.job_id) is JobStatus.REQUEUED


def test_renewal_behind_a_reap_learns_the_loss(bench: Bench) -> None:
    """The renewal waits for the reap, which is about to commit."""

    def lapsed() -> Run:
        run = bench.run(bench.submit(max_attempts=2))
        bench.pass_time(seconds=LAPSE)
        return run

    bench.trust_leases()
    former = lapsed()
    commit = steps(bench, lambda: bench.reap(str(former.worker.worker_uid)))
    run = lapsed()
    lost, renewed = in_the_middle(
        bench,
        commit,
        lambda: bench.reap(str(run.worker.worker_uid)),
        lambda: bench.store.leases.renew(run.worker),
    )
    assert [job.job_id for job in lost] == [run.job_id]
    assert not renewed
    assert bench.status(run.job_id) is JobStatus.REQUEUED


def test_reap_does_not_wait_for_a_worker_that_is_renewing(server_bench: Bench) -> None:
    """Mutant 11: the reap checks the lease in its own transaction, under a lock."""
    bench = server_bench
    run = bench.run(bench.submit(max_attempts=2))
    bench.pass_time(seconds=LAPSE)
    with locked(bench, worker_table):
        assert bench.reap(str(run.worker.worker_uid)) == []
    bench.store.leases.renew(run.worker)
    assert bench.reap(str(run.worker.worker_uid)) == []


def test_claim_whose_lease_ends_behind_a_lock_is_recovered(server_bench: Bench) -> None:
    """On PostgreSQL the claim checks the lease before it waits for the row, on MariaDB before or after.

    SQLite has one lock: no write comes between a claim's check and its commit.
    """
    bench = server_bench
    job_id = bench.submit()
    me = bench.worker()
    run = bench.key(job_id, me)
    mine = worker_table.c.worker_uid == me.worker_uid

    def end_lease() -> None:
        with bench.database.transaction() as connection:
            connection.execute(worker_table.update().where(mine).values(lease_until=clock(-1.0)))

    with ThreadPoolExecutor(1) as pool:
        with locked(bench, job):
            claiming = pool.submit(bench.store.runs.claim, run, TASK)
            eventually(lambda: waiting(bench) == 1)
            # MariaDB may lock the lease before it waits for the row: then it is ended after the claim.
            with suppress(DatabaseUnavailableError):
                end_lease()
                assert bench.lapsed_workers() == [me.worker_uid]
                bench.reap(str(me.worker_uid))
        answer = claiming.result(timeout=30)
    end_lease()
    for worker_uid in bench.lapsed_workers():
        bench.reap(worker_uid)
    assert isinstance(answer, ClaimRejected) or bench.status(job_id) is JobStatus.ERROR
