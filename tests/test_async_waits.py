"""Coroutines that wait for jobs and watch them: without threads, in each kind of loop, and cancelled."""

import asyncio
import threading
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

import pytest

from jobhandle_celery import (
    ApiUsageError,
    AsyncJobHandle,
    JobCancelledError,
    JobFailedError,
    JobStatus,
    Progress,
    UnknownJobError,
    WaitTimeoutError,
)
from jobhandle_celery.store.call_threads import MAX_THREADS
from tests.async_handles import LONG, attached, call_threads, eventually_in_loop, prepare
from tests.job_factory import ADD, HELD, JobFactory
from tests.support import prune_ended


def end(factory: JobFactory, job_id: int, status: str = "Finished") -> None:
    handle = factory.jobs.attach(job_id)
    handle.set_status("Running")
    handle.set_status(status)


def waits(factory: JobFactory) -> int:
    return len(factory.jobs._runtime.completion._waits)


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
            assert len(call_threads()) <= MAX_THREADS
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
