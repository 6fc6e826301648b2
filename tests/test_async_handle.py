"""`AsyncJobHandle`: each operation as a coroutine, and what a cancelled one leaves."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event

from jobhandle_celery import (
    AsyncJobHandle,
    HandleClosedError,
    Job,
    JobCancelledError,
    JobHandle,
    JobStatus,
    NotAttachedError,
    StopRequested,
    UnknownJobError,
    ValidationError,
    WaitTimeoutError,
)
from jobhandle_celery.store.call_threads import CALLS_BEGUN, MAX_THREADS, threads
from tests.async_handles import LONG, StatementsInLoop, attached, call_threads, eventually_in_loop, prepare
from tests.job_factory import HELD, JobFactory

Operation = Callable[[Any], Any]
"""Calls a method of either kind of handle."""

OPERATIONS: dict[str, tuple[str, Operation]] = {
    "submit": ("Waiting", lambda handle: handle.submit(HELD)),
    "attach": ("Waiting", lambda handle: handle.attach(handle.job_id)),
    "get_job": ("Waiting", lambda handle: handle.get_job()),
    "job_status": ("Waiting", lambda handle: handle.job_status()),
    "job_finished": ("Cancelled", lambda handle: handle.job_finished()),
    "job_message": ("Waiting", lambda handle: handle.job_message()),
    "job_running": ("Running", lambda handle: handle.job_running()),
    "job_error": ("Waiting", lambda handle: handle.job_error()),
    "cancel_job": ("Running", lambda handle: handle.cancel_job(terminate=True)),
    "set_status": ("Waiting", lambda handle: handle.set_status("Running")),
    "set_message": ("Waiting", lambda handle: handle.set_message("new")),
    "set_status_and_message": ("Running", lambda handle: handle.set_status_and_message("Error", "new")),
    "set_progress": ("Running", lambda handle: handle.set_progress(1, 2)),
    "cancel_requested": ("Running", lambda handle: handle.cancel_requested()),
    "raise_if_cancelled": ("Running", lambda handle: handle.raise_if_cancelled()),
    "resubmit_job": ("Cancelled", lambda handle: handle.resubmit_job()),
    "release_job": ("Waiting", lambda handle: handle.release_job()),
    "events": ("Waiting", lambda handle: handle.events()),
    "needs": ("Waiting", lambda handle: handle.needs()),
    "members": ("Waiting", lambda handle: handle.members()),
}
"""By name: the status before, and the call."""

ELSEWHERE = {"wait", "result", "watch", "close", "job_id"}


def look(factory: JobFactory, job_id: int) -> tuple[Any, ...]:
    """Return what an operation may change of a job."""
    row = factory.row(job_id)
    events = [(event.status, event.message) for event in factory.jobs.events(job_id)]
    return row.status_id, row.message, row.progress_current, row.attempt, row.terminate, events


def anonymous(factory: JobFactory, value: Any) -> Any:
    """Return what an operation has returned, without what differs from job to job."""
    if isinstance(value, JobStatus) or not isinstance(value, int | list | JobHandle):
        return type(value) if hasattr(value, "submitted") or hasattr(value, "tzinfo") else value
    return len(value) if isinstance(value, list) else type(value)


def test_every_operation_is_tried() -> None:
    public = {name for name in vars(AsyncJobHandle) if not name.startswith("_")}
    assert public - OPERATIONS.keys() == ELSEWHERE


def test_operations_do_what_those_of_the_handle_do(factory: JobFactory) -> None:
    async def call(operation: Operation, job_id: int) -> Any:
        async with attached(factory, job_id) as handle:
            return await operation(handle)

    in_loop = StatementsInLoop(factory.jobs)
    for name, (status, operation) in OPERATIONS.items():
        handle = factory.jobs.handle()
        by_thread, by_coroutine = prepare(handle, status), prepare(handle, status)
        expected = operation(factory.jobs.attach(by_thread))
        returned = asyncio.run(call(operation, by_coroutine))
        assert anonymous(factory, returned) == anonymous(factory, expected), name
        assert look(factory, by_coroutine) == look(factory, by_thread), name
        assert in_loop.seen == [], name


def test_errors_are_those_of_the_handle(factory: JobFactory) -> None:
    async def errors() -> None:
        handle = factory.jobs.async_handle(username="ann")
        with pytest.raises(NotAttachedError):
            await handle.job_status()
        with pytest.raises(UnknownJobError):
            await handle.attach(10**6)
        with pytest.raises(ValidationError):
            await handle.submit(Job(task=""))
        job_id = await handle.submit(HELD)
        with pytest.raises(ValidationError):
            await handle.set_status("Queued")
        with pytest.raises(WaitTimeoutError, match=r"is Waiting after 0\.05 s"):
            await handle.wait(0.05)
        with pytest.raises(WaitTimeoutError):
            await handle.result(timedelta(0))
        with pytest.raises(UnknownJobError):
            await factory.jobs.async_handle(username="bob").attach(job_id)
        await handle.cancel_job()
        with pytest.raises(JobCancelledError):
            await handle.result()
        with pytest.raises(StopRequested):
            await handle.raise_if_cancelled()
        await handle.close()
        await handle.close()
        with pytest.raises(HandleClosedError):
            await handle.job_status()

    asyncio.run(errors())
    with pytest.raises(ValidationError):
        factory.jobs.async_handle(username=None)


def test_failed_attach_and_submit_leave_the_handle_where_it_was(factory: JobFactory) -> None:
    job_id = prepare(factory.jobs.handle(), "Waiting")

    async def fail() -> int:
        async with attached(factory, job_id) as handle:
            with pytest.raises(UnknownJobError):
                await handle.attach(10**6)
            with pytest.raises(ValidationError):
                await handle.submit(Job(task=""))
            return handle.job_id

    assert asyncio.run(fail()) == job_id


class Gate:
    """Holds a statement or a commit of a call of a coroutine: the n-th since it was set."""

    def __init__(self, factory: JobFactory) -> None:
        self._engine = factory.store.database.engine
        self._left = 0
        self.reached, self.open = threading.Event(), threading.Event()
        event.listen(self._engine, "before_cursor_execute", self._step)
        event.listen(self._engine, "commit", self._step)

    def close(self) -> None:
        event.remove(self._engine, "before_cursor_execute", self._step)
        event.remove(self._engine, "commit", self._step)

    def set(self, number: int) -> None:
        self._left = number
        self.reached, self.open = threading.Event(), threading.Event()

    def disarm(self) -> None:
        self._left = 0

    def _step(self, *_: Any) -> None:
        if threading.current_thread().name.startswith("jobhandle-call"):
            self._left -= 1
            if self._left == 0:
                self.reached.set()
                assert self.open.wait(LONG)

    async def nothing_left(self) -> None:
        """Meet in all threads of calls: none is busy; and no connection is used."""
        meeting = threading.Barrier(MAX_THREADS)
        calls = [threads.call(meeting.wait, LONG) for _ in range(meeting.parties)]
        await asyncio.gather(*calls)
        pool: Any = self._engine.pool
        await eventually_in_loop(lambda: pool.checkedout() == 0, "no connection is left")


@pytest.fixture(params=["sqlite", "postgresql"])
def gated(request: pytest.FixtureRequest) -> Iterator[tuple[JobFactory, Gate]]:
    factory = JobFactory(request.getfixturevalue(f"{request.param}_url"))
    prepare(factory.jobs.handle(), "Waiting")  # what is done at the first use
    gate = Gate(factory)
    yield factory, gate
    gate.open.set()
    gate.close()
    factory.close()


@pytest.mark.faults
def test_operation_that_is_cancelled_at_any_statement_is_done_or_not(
    gated: tuple[JobFactory, Gate],
) -> None:
    """A cancelled coroutine ends at once; the statements of its call are all made, and nothing is left."""
    factory, gate = gated

    async def cancelled(operation: Operation, job_id: int, number: int) -> bool:
        async with attached(factory, job_id) as handle:
            gate.set(number)
            task = asyncio.ensure_future(operation(handle))
            reached = asyncio.create_task(asyncio.to_thread(gate.reached.wait, LONG))
            await asyncio.wait([task, reached], return_when=asyncio.FIRST_COMPLETED)
            was_reached = gate.reached.is_set()
            gate.reached.set()
            await reached
            gate.disarm()
            if was_reached:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert handle.job_id == job_id, "a cancelled submit does not move the handle"
                gate.open.set()
            else:
                await task
            await gate.nothing_left()
            return was_reached

    for name, (status, operation) in OPERATIONS.items():
        plain = prepare(factory.jobs.handle(), status)
        operation(factory.jobs.attach(plain))
        expected = look(factory, plain)
        number = 1
        while asyncio.run(cancelled(operation, job_id := prepare(factory.jobs.handle(), status), number)):
            assert look(factory, job_id) == expected, f"{name}, statement {number}"
            number += 1
        assert number > 1, name
    assert len(call_threads()) <= MAX_THREADS


def test_operation_that_is_cancelled_before_its_turn_is_not_done(gated: tuple[JobFactory, Gate]) -> None:
    factory, gate = gated
    job_id = prepare(factory.jobs.handle(), "Waiting")
    held = threading.Event()

    async def main() -> None:
        async with attached(factory, job_id) as handle:
            busy = [asyncio.ensure_future(threads.call(held.wait, LONG)) for _ in range(MAX_THREADS)]
            # Some in the queue of the threads, some in the event loop.
            waiting = [asyncio.ensure_future(handle.cancel_job()) for _ in range(CALLS_BEGUN + 1)]
            await asyncio.sleep(0)
            for call in waiting:
                call.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            assert all(call.cancelled() for call in waiting)
            held.set()
            await asyncio.gather(*busy)
            await gate.nothing_left()

    try:
        asyncio.run(main())
    finally:
        held.set()
    assert factory.jobs.attach(job_id).job_status() is JobStatus.WAITING
