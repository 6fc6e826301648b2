"""The faults: `advance`, `lose_worker`, `deliver_twice`, `database_away`."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import freezegun
import pytest
import time_machine
from celery import chain, group
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from jobhandle_celery import (
    ApiUsageError,
    DatabaseUnavailableError,
    InvalidTransitionError,
    Job,
    JobStatus,
    UnknownJobError,
    current_job,
)
from jobhandle_celery.testing import JobsKit
from tests.testing import service
from tests.testing.service import add, functions, note, steps, total

Away = Callable[[], AbstractContextManager[None]]


def frozen_at(tool: str, moment: datetime) -> Any:
    if tool == "freezegun":
        return freezegun.freeze_time(moment)
    return time_machine.travel(moment, tick=False)


def test_scheduled_job_is_due_once_the_clock_has_advanced(
    jobs: JobsKit, advance: Callable[..., None]
) -> None:
    jobs.submit(Job(task=note.name, args=[1], scheduled_for=timedelta(hours=1)))
    advance(minutes=59)
    assert jobs.run_jobs() == []
    advance(timedelta(minutes=2))
    (job,) = jobs.run_jobs()
    assert job.started is not None
    assert job.started - datetime.now(UTC) > timedelta(minutes=60)


def test_job_expires_when_the_clock_advances(jobs: JobsKit, advance: Callable[..., None]) -> None:
    handle = jobs.handle()
    handle.submit(Job(task=note.name, args=[1], expires=30))
    advance(31)
    assert jobs.run_jobs() == []
    assert (handle.job_status(), handle.job_message()) == (
        JobStatus.CANCELLED,
        "expired before it was started",
    )


def test_time_of_a_joined_session_is_the_same(jobs: JobsKit, advance: Callable[..., None]) -> None:
    """The service's own connection inserts the row."""
    advance(hours=10)
    engine = create_engine(jobs.database_url)
    with Session(engine) as session, session.begin():
        service.jobs.submit(Job(task=note.name, args=[1], scheduled_for=timedelta(hours=1)), session=session)
    engine.dispose()
    assert jobs.run_jobs() == []
    (job,) = jobs.find()
    assert job.submitted - datetime.now(UTC) > timedelta(hours=9)
    advance(hours=1)
    assert len(jobs.run_jobs()) == 1


@pytest.mark.parametrize("tool", ["time_machine", "freezegun"])
def test_time_of_a_joined_async_session_is_the_same(
    jobs: JobsKit, advance: Callable[..., None], database_away: Away, tool: str
) -> None:
    """On aiosqlite, whose connections have a thread each; in an event loop under both tools."""
    then = datetime(2031, 5, 1, 12, tzinfo=UTC)

    async def submit(engine: AsyncEngine, number: int) -> datetime:
        async with service.jobs.async_handle() as handle, AsyncSession(engine) as session:
            job = Job(task=note.name, args=[number], scheduled_for=timedelta(hours=1))
            await handle.submit(job, session=session)
            await session.commit()
            return (await handle.get_job()).submitted

    async def main() -> None:
        engine = create_async_engine(jobs.database_url.replace("sqlite:", "sqlite+aiosqlite:"))
        with frozen_at(tool, then) as moved:
            assert await submit(engine, 1) == then
            advance(hours=1)
            assert await submit(engine, 2) == then + timedelta(hours=1)
            assert [job.args for job in jobs.run_jobs()] == [[1]]
            moved.tick(3600) if tool == "freezegun" else moved.shift(3600)
            assert [job.args for job in jobs.run_jobs()] == [[2]]
        with database_away(), pytest.raises(DatabaseUnavailableError, match="away"):
            await submit(engine, 3)
        await engine.dispose()

    asyncio.run(main())
    assert steps == [1, 2]


def test_worker_keeps_its_lease_when_the_clock_advances(jobs: JobsKit, advance: Callable[..., None]) -> None:
    jobs.submit_many([note.s(1), note.s(2)])
    functions["advance"] = lambda: advance(days=1)
    jobs.submit(service.call.s("advance"))
    jobs.submit(note.s(3))
    assert {job.status for job in jobs.run_jobs()} == {JobStatus.FINISHED}
    jobs.submit(note.s(4))
    assert len(jobs.run_jobs()) == 1
    assert steps == [1, 2, 3, 4]


def test_clock_does_not_go_back(advance: Callable[..., None]) -> None:
    with pytest.raises(ApiUsageError, match="backwards"):
        advance(hours=-1)


@pytest.mark.parametrize("tool", ["freezegun", "time_machine"])
def test_frozen_time_is_the_time_of_the_database(
    jobs: JobsKit, advance: Callable[..., None], tool: str
) -> None:
    then = datetime(2031, 5, 1, 12, tzinfo=UTC)
    with frozen_at(tool, then) as moved:
        jobs.submit(Job(task=note.name, args=[1], scheduled_for=then + timedelta(hours=2)))
        assert jobs.find()[0].submitted == then
        assert jobs.run_jobs() == []
        moved.tick(3600) if tool == "freezegun" else moved.shift(3600)
        assert jobs.run_jobs() == []
        advance(hours=1)
        (job,) = jobs.run_jobs()
        assert job.started == then + timedelta(hours=2)


def test_job_of_a_lost_worker_ends_in_error(jobs: JobsKit, lose_worker: Callable[[int], JobStatus]) -> None:
    job_id = jobs.submit(note.s(1))
    assert lose_worker(job_id) is JobStatus.ERROR
    job = jobs.attach(job_id).get_job()
    assert job.error is not None
    assert (job.error.kind, job.error.type, job.attempt) == ("system", "WorkerLostError", 1)
    assert jobs.run_jobs() == []


def test_job_with_attempts_left_runs_again(jobs: JobsKit, lose_worker: Callable[[int], JobStatus]) -> None:
    job_id = jobs.submit(Job(task=note.name, args=[1], max_attempts=2))
    assert lose_worker(job_id) is JobStatus.REQUEUED
    (job,) = jobs.run_jobs()
    assert (job.status, job.attempt, steps) == (JobStatus.FINISHED, 2, [1])


def test_body_whose_worker_is_lost_is_superseded(
    jobs: JobsKit, lose_worker: Callable[[int], JobStatus]
) -> None:
    """The body goes on, as on a machine that was cut off; its outcome changes nothing."""

    def lose() -> bool:
        job: Any = current_job()
        steps.append(lose_worker(job.job_id))
        return bool(job.cancel_requested())

    functions["lose"] = lose
    job_id = jobs.submit(service.call.s("lose"))
    jobs.run_jobs()
    assert (jobs.attach(job_id).job_status(), steps) == (JobStatus.ERROR, [JobStatus.ERROR])


def test_what_needs_a_lost_job_is_cancelled(jobs: JobsKit, lose_worker: Callable[[int], JobStatus]) -> None:
    root = jobs.submit(chain(add.s(1, 2), add.s(3)))
    lose_worker(jobs.assert_submitted(add, args=[1, 2]).id)
    assert jobs.attach(root).job_status() is JobStatus.ERROR
    assert jobs.assert_submitted(add, args=[3]).status is JobStatus.CANCELLED


def test_job_that_no_worker_can_start_cannot_lose_one(
    jobs: JobsKit, lose_worker: Callable[[int], JobStatus]
) -> None:
    held = jobs.submit(Job(task=note.name, args=[1], status=JobStatus.WAITING))
    with pytest.raises(InvalidTransitionError, match=f"job {held} is Waiting; no worker can start it: "):
        lose_worker(held)
    handle = jobs.attach(jobs.submit(note.s(1)))
    handle.set_status("Running")
    with pytest.raises(InvalidTransitionError, match="is Running, and no worker runs it"):
        lose_worker(handle.job_id)
    with pytest.raises(UnknownJobError):
        lose_worker(1000)


@pytest.mark.parametrize("has_begun", [False, True], ids=["submitted", "running"])
@pytest.mark.parametrize("fault", ["lose_worker", "deliver_twice"])
def test_nodes_of_a_tree_have_no_worker_and_no_message(
    jobs: JobsKit, fault: str, request: pytest.FixtureRequest, *, has_begun: bool
) -> None:
    root = jobs.submit(chain(add.s(1, 2), group(add.s(3), add.s(4)), total.s()))
    nodes = [job.id for job in jobs.find(root=root) if job.kind is not None]
    if has_begun:
        functions["begin"] = lambda: steps.extend(_refused(request.getfixturevalue(fault), [root, *nodes]))
        root = jobs.submit(chain(service.call.si("begin"), group(add.si(1, 2), add.si(3, 4)), total.s()))
        nodes = [job.id for job in jobs.find(root=root) if job.kind is not None]
    else:
        steps.extend(_refused(request.getfixturevalue(fault), [root, *nodes]))
    assert len(nodes) == 2  # the group is the header of a chord
    jobs.run_jobs()
    assert steps == [True, True, True]
    assert jobs.attach(root).result(timeout=0) == (10 if has_begun else 13)


def _refused(fault: Callable[[int], Any], job_ids: list[int]) -> list[bool]:
    refused = []
    for job_id in job_ids:
        with pytest.raises(InvalidTransitionError, match=f"job {job_id} is "):
            fault(job_id)
        refused.append(True)
    return refused


def test_message_that_is_delivered_twice_starts_one_body(
    jobs: JobsKit, deliver_twice: Callable[[int], None]
) -> None:
    first, second = jobs.submit_many([note.s(1), note.s(2)])
    deliver_twice(first)
    assert [job.id for job in jobs.run_jobs()] == [first, second]
    deliver_twice(first)
    deliver_twice(second)
    assert jobs.run_jobs() == []
    assert steps == [1, 2]
    assert {job.attempt for job in jobs.find()} == {1}


def test_job_without_a_message_cannot_be_delivered_twice(
    jobs: JobsKit, deliver_twice: Callable[[int], None]
) -> None:
    job_id = jobs.submit(Job(task=note.name, args=[1], scheduled_for=60))
    with pytest.raises(InvalidTransitionError, match="is Waiting; no message of it has been published"):
        deliver_twice(job_id)


def test_calls_fail_while_the_database_is_away(jobs: JobsKit, database_away: Away) -> None:
    handle = service.jobs.attach(jobs.submit(note.s(1)))
    with database_away():
        for call in (lambda: service.jobs.submit(note.s(2)), handle.job_status, jobs.run_jobs):
            with pytest.raises(DatabaseUnavailableError, match="the database is away"):
                call()
    assert len(jobs.run_jobs()) == 1


def test_engines_of_the_service_fail_as_well(jobs: JobsKit, database_away: Away) -> None:
    engine = create_engine(jobs.database_url)
    with engine.connect():
        pass
    with database_away(), pytest.raises(OperationalError, match="the database is away"):
        engine.connect()
    with engine.connect():
        pass
    engine.dispose()


def test_outcome_is_written_once_the_database_is_back(jobs: JobsKit, database_away: Away) -> None:
    """As in a worker: the process of the body cannot write it, and its main process does."""
    away = database_away()

    def lose_database() -> str:
        job: Any = current_job()
        away.__enter__()
        job.set_progress(1)
        job.raise_if_cancelled()
        return "done"

    functions["lose"] = lose_database
    handle = jobs.attach(jobs.submit(service.call.s("lose")))
    with pytest.raises(DatabaseUnavailableError):
        jobs.run_jobs()
    away.__exit__(None, None, None)
    assert handle.job_status() is JobStatus.RUNNING
    jobs.run_jobs()
    assert handle.result(timeout=0) == "done"
