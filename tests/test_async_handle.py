"""`AsyncJobHandle`: each operation as a coroutine, waits without threads, and what a cancelled one leaves."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event

from jobhandle_celery import (
    ApiUsageError,
    AsyncJobHandle,
    HandleClosedError,
    Job,
    JobCancelledError,
    JobFailedError,
    JobHandle,
    JobStatus,
    NotAttachedError,
    Progress,
    StopRequested,
    UnknownJobError,
    ValidationError,
    WaitTimeoutError,
)
from jobhandle_celery.store.call_threads import CALLS_BEGUN, MOST_THREADS, threads
from tests.job_factory import ADD, HELD, JobFactory
from tests.support import eventually, prune_ended

LONG = 30

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


def prepare(handle: JobHandle, status: str) -> int:
    job_id = handle.submit(HELD)
    if status != JobStatus.WAITING:
        handle.set_status(status)
    return job_id


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


@asynccontextmanager
async def attached(factory: JobFactory, job_id: int) -> AsyncIterator[AsyncJobHandle]:
    async with factory.jobs.async_handle() as handle:
        await handle.attach(job_id)
        yield handle


def test_every_operation_is_tried() -> None:
    public = {name for name in vars(AsyncJobHandle) if not name.startswith("_")}
    assert public - OPERATIONS.keys() == ELSEWHERE


def test_operations_do_what_those_of_the_handle_do(factory: JobFactory) -> None:
    async def call(operation: Operation, job_id: int) -> Any:
        async with attached(factory, job_id) as handle:
            return await operation(handle)

    for name, (status, operation) in OPERATIONS.items():
        handle = factory.jobs.handle()
        by_thread, by_coroutine = prepare(handle, status), prepare(handle, status)
        expected = operation(factory.jobs.attach(by_thread))
        returned = asyncio.run(call(operation, by_coroutine))
        assert anonymous(factory, returned) == anonymous(factory, expected), name
        assert look(factory, by_coroutine) == look(factory, by_thread), name


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


def end(factory: JobFactory, job_id: int, status: str = "Finished") -> None:
    handle = factory.jobs.attach(job_id)
    handle.set_status("Running")
    handle.set_status(status)


async def eventually_in_loop(condition: Callable[[], object], message: str) -> None:
    await asyncio.to_thread(eventually, condition, LONG, message)


def waits(factory: JobFactory) -> int:
    return len(factory.jobs._runtime.completion._waits)


def call_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("jobhandle-call")}


def test_waiting_coroutines_hold_no_thread(factory: JobFactory) -> None:
    """Two hundred wait, and others call through a few threads."""
    ids = factory.jobs.submit_many([HELD] * 200)

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for job_id in ids[:100]:
                group.create_task(wait_for(job_id))
            for job_id in ids[100:]:
                group.create_task(result_of(job_id))
            await eventually_in_loop(lambda: waits(factory) == 200, "all wait")
            assert len(call_threads()) <= MOST_THREADS
            async with attached(factory, ids[0]) as handle:
                assert await handle.job_status() == "Waiting"
            await asyncio.to_thread(factory.jobs.cancel_many, ids=ids)

    async def wait_for(job_id: int) -> None:
        async with attached(factory, job_id) as handle:
            assert await handle.wait(LONG) is JobStatus.CANCELLED

    async def result_of(job_id: int) -> None:
        async with attached(factory, job_id) as handle:
            with pytest.raises(JobCancelledError):
                await handle.result(timedelta(days=10**6))

    asyncio.run(main())
    assert waits(factory) == 0


def test_wait_for_an_ended_job_returns_how_it_ended(factory: JobFactory) -> None:
    job_id = prepare(factory.jobs.handle(), "Cancelled")

    async def main() -> None:
        async with attached(factory, job_id) as handle:
            assert await handle.wait() is JobStatus.CANCELLED
            assert await handle.wait(0) is JobStatus.CANCELLED
            with pytest.raises(JobCancelledError):
                await handle.result(0)
            assert [record.status async for record in handle.watch()] == ["Cancelled"]

    asyncio.run(main())


def test_wait_for_a_deleted_job_raises(factory: JobFactory) -> None:
    job_id = prepare(factory.jobs.handle(), "Cancelled")

    async def main() -> None:
        async with attached(factory, job_id) as handle:
            await asyncio.to_thread(prune_ended, factory.jobs)
            for wait in (handle.wait, handle.result):
                with pytest.raises(UnknownJobError):
                    await wait(LONG)

    asyncio.run(main())


def test_failed_job_raises_its_failure(factory: JobFactory) -> None:
    job_id = prepare(factory.jobs.handle(), "Running")

    async def result() -> Any:
        async with attached(factory, job_id) as handle:
            waiting = asyncio.create_task(handle.result())
            await eventually_in_loop(lambda: waits(factory), "it waits")
            await handle.set_status("Error")
            return await waiting

    with pytest.raises(JobFailedError):
        asyncio.run(result())


def test_watch_yields_each_change_and_ends_with_the_job(factory: JobFactory) -> None:
    """A thread and a coroutine see the same."""
    job_id = prepare(factory.jobs.handle(), "Waiting")
    seen: dict[str, list[Any]] = {"thread": [], "coroutine": []}

    def watch() -> None:
        for record in factory.jobs.attach(job_id).watch():
            seen["thread"].append((record.status, record.message, record.progress))

    async def main() -> None:
        async with attached(factory, job_id) as handle:
            watching = [asyncio.to_thread(watch), watch_in_loop(handle)]
            together = asyncio.gather(*watching)
            expected = [(JobStatus.WAITING, HELD.message, None)]
            await until(expected)
            await handle.set_status("Running")
            await until(expected, JobStatus.RUNNING, HELD.message, None)
            await handle.set_progress(1, 2)
            await until(expected, JobStatus.RUNNING, HELD.message, Progress(1, 2))
            await handle.set_message("half")
            await until(expected, JobStatus.RUNNING, "half", Progress(1, 2))
            await handle.set_status_and_message("Finished", "whole")
            await until(expected, JobStatus.FINISHED, "whole", Progress(1, 2))
            await together

    async def watch_in_loop(handle: AsyncJobHandle) -> None:
        async for record in handle.watch():
            seen["coroutine"].append((record.status, record.message, record.progress))

    async def until(expected: list[Any], *change: Any) -> None:
        expected += [change] if change else []
        await eventually_in_loop(lambda: all(it == expected for it in seen.values()), f"{expected}")

    asyncio.run(main())
    assert next(factory.jobs.attach(job_id).watch()).status is JobStatus.FINISHED


def test_watch_of_a_tree_yields_its_progress(factory: JobFactory) -> None:
    from celery import group

    add = factory.app.tasks["tests.add"]
    handle = factory.jobs.handle()
    root = handle.submit(group(add.si(1, 2), add.si(3, 4)))
    members = [member.id for member in handle.members()]
    shown: list[Any] = []

    async def main() -> None:
        async with attached(factory, root) as watched:
            async for record in watched.watch(LONG):
                shown.append(record.progress)
                if members:
                    await asyncio.to_thread(end, factory, members.pop())

    asyncio.run(main())
    assert shown[0] == Progress(0, 2)
    assert Progress(1, 2) in shown
    assert shown[-1] == Progress(2, 2)


def test_watch_ends_at_its_timeout(factory: JobFactory) -> None:
    job_id = prepare(factory.jobs.handle(), "Waiting")
    handle = factory.jobs.attach(job_id)
    with pytest.raises(WaitTimeoutError):
        list(handle.watch(0.02))

    async def main() -> list[JobStatus]:
        async with attached(factory, job_id) as handle:
            return [record.status async for record in handle.watch(0.02)]

    with pytest.raises(WaitTimeoutError):
        asyncio.run(main())
    assert waits(factory) == 0


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
        meeting = threading.Barrier(MOST_THREADS)
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
    assert len(call_threads()) <= MOST_THREADS


def test_operation_that_is_cancelled_before_its_turn_is_not_done(gated: tuple[JobFactory, Gate]) -> None:
    factory, gate = gated
    job_id = prepare(factory.jobs.handle(), "Waiting")
    held = threading.Event()

    async def main() -> None:
        async with attached(factory, job_id) as handle:
            busy = [asyncio.ensure_future(threads.call(held.wait, LONG)) for _ in range(MOST_THREADS)]
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


@pytest.mark.parametrize("verb", ["wait", "result", "watch"])
def test_cancelled_wait_leaves_nothing(factory: JobFactory, verb: str) -> None:
    job_id = prepare(factory.jobs.handle(), "Waiting")

    async def watch(handle: AsyncJobHandle) -> None:
        async for _ in handle.watch():
            pass

    async def main() -> None:
        async with attached(factory, job_id) as handle:
            work: Awaitable[object] = watch(handle) if verb == "watch" else getattr(handle, verb)()
            task = asyncio.ensure_future(work)
            await eventually_in_loop(lambda: waits(factory), "it waits")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert waits(factory) == 0

    asyncio.run(main())
    assert factory.jobs.attach(job_id).job_status() is JobStatus.WAITING


def test_loop_that_is_closed_beside_a_wait_harms_no_other(factory: JobFactory) -> None:
    job_id = prepare(factory.jobs.handle(), "Waiting")

    async def leave() -> None:
        handle = factory.jobs.async_handle()
        await handle.attach(job_id)
        left = asyncio.ensure_future(handle.wait())
        await eventually_in_loop(lambda: waits(factory), "it waits")
        left.add_done_callback(lambda _: None)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # it is what is tested
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    waiting = threading.Thread(target=factory.jobs.attach(job_id).wait, args=(LONG,))
    waiting.start()
    end(factory, job_id)
    waiting.join(LONG)
    assert not waiting.is_alive()


async def use_everything(factory: JobFactory) -> JobStatus:
    async with factory.jobs.async_handle() as handle:
        await handle.submit(HELD)
        watching = asyncio.ensure_future(anext(handle.watch(timedelta(days=10**6))))
        waiting = asyncio.ensure_future(handle.wait(timedelta(days=10**6)))
        await eventually_in_loop(lambda: waits(factory) == 1, "one waits, the other has its first record")
        assert (await watching).status is JobStatus.WAITING
        with pytest.raises(WaitTimeoutError):
            await handle.wait(0.01)
        await handle.cancel_job()
        status: JobStatus = await waiting
        return status


def test_uvloop_runs_every_kind_of_wait(factory: JobFactory) -> None:
    uvloop = pytest.importorskip("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(use_everything(factory)) is JobStatus.CANCELLED


def test_anyio_on_asyncio_runs_every_kind_of_wait(factory: JobFactory) -> None:
    anyio = pytest.importorskip("anyio")
    assert anyio.run(use_everything, factory, backend="asyncio") is JobStatus.CANCELLED


def test_anyios_timeout_cancels_a_wait(factory: JobFactory) -> None:
    anyio = pytest.importorskip("anyio")
    job_id = prepare(factory.jobs.handle(), "Waiting")

    async def main() -> None:
        async with attached(factory, job_id) as handle:
            with anyio.move_on_after(0.05) as scope:
                await handle.wait()
            assert scope.cancelled_caught

    anyio.run(main)
    assert waits(factory) == 0


def test_call_outside_of_an_event_loop_of_asyncio_is_refused(factory: JobFactory) -> None:
    handle = factory.jobs.async_handle()
    with pytest.raises(ApiUsageError, match="needs asyncio's event loop"):
        handle.submit(ADD).send(None)
    handle = factory.jobs.async_handle()
    handle._handle.submit(HELD)
    with pytest.raises(ApiUsageError, match="needs asyncio's event loop"):
        handle.wait().send(None)
    with pytest.raises(ApiUsageError, match="needs asyncio's event loop"):
        anext(handle.watch()).send(None)
    assert waits(factory) == 0
    pytest.importorskip("trio")
    anyio = pytest.importorskip("anyio")
    with pytest.raises(ApiUsageError, match=r"trio\.to_thread\.run_sync"):
        anyio.run(handle.submit, ADD, backend="trio")
