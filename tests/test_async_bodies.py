"""Bodies that run an event loop: `current_job()` in its coroutines, and stops that they raise."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import Any

import pytest

from jobhandle_celery import AsyncJobHandle, JobCancelledError, JobHandle, JobStatus, Progress, current_job
from jobhandle_celery.worker.current_run import CurrentRun, running


@pytest.fixture
def app(sqlite_url: str, make_jobs_app: Callable[..., Any]) -> Any:
    return make_jobs_app(sqlite_url, task_always_eager=True)


@pytest.fixture
def run(app: Any) -> Callable[..., JobHandle]:
    """Submit a job whose body is that function, and which runs at once."""

    def submit(body: Callable[[], Any]) -> JobHandle:
        task = app.task(body, name=f"tests.{body.__name__}", shared=False)
        handle: JobHandle = app.jobs.handle()
        handle.submit(task.s())
        return handle

    return submit


def id_of_job() -> int | None:
    job = current_job()
    return None if job is None else job.job_id


def test_current_job_is_found_in_coroutines_and_their_threads(run: Callable[..., JobHandle]) -> None:
    found: dict[str, int | None] = {}

    async def main() -> None:
        found["coroutine"] = id_of_job()
        async with asyncio.TaskGroup() as group:
            group.create_task(child())
            group.create_task(asyncio.to_thread(in_thread))
        # Celery's current task is that of a thread.
        plain = threading.Thread(target=lambda: found.setdefault("plain thread", id_of_job()))
        plain.start()
        plain.join()

    async def child() -> None:
        await asyncio.sleep(0)
        found["child"] = id_of_job()

    def in_thread() -> None:
        found["thread"] = id_of_job()

    def loops() -> None:
        asyncio.run(main())

    job_id = run(loops).job_id
    assert found == {"coroutine": job_id, "child": job_id, "thread": job_id, "plain thread": None}
    assert current_job() is None


def test_task_called_in_a_thread_of_a_body_has_no_job(app: Any, run: Callable[..., JobHandle]) -> None:
    @app.task(name="tests.other", shared=False)  # type: ignore[untyped-decorator]  # Celery's
    def other() -> int | None:
        return id_of_job()

    async def main() -> None:
        assert await asyncio.to_thread(other) is None

    def loops() -> None:
        asyncio.run(main())

    assert run(loops).job_status() is JobStatus.FINISHED


def test_body_reports_progress_as_coroutine(run: Callable[..., JobHandle]) -> None:
    async def main() -> int:
        body = current_job()
        assert body is not None
        job = AsyncJobHandle(body)
        await job.set_progress(1, 2)
        await job.set_message("half")
        assert await job.job_running()
        with pytest.raises(RuntimeError, match="never wait"):
            await job.wait()
        return job.job_id

    def loops() -> int:
        from celery.result import denied_join_result

        with denied_join_result():
            return asyncio.run(main())

    handle = run(loops)
    assert handle.result(0) == handle.job_id
    assert handle.get_job().progress == Progress(1, 2)
    assert handle.job_message() == "half"


def test_stop_in_a_task_group_cancels_the_job(run: Callable[..., JobHandle]) -> None:
    """A TaskGroup raises a group, which ended the job in Error."""

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(30))
            group.create_task(stop())

    async def stop() -> None:
        body = current_job()
        assert body is not None
        job = AsyncJobHandle(body)
        await job.cancel_job()
        await job.raise_if_cancelled()

    def loops() -> None:
        asyncio.run(main())

    handle = run(loops)
    assert handle.job_status() is JobStatus.CANCELLED
    with pytest.raises(JobCancelledError):
        handle.result(0)


def test_error_beside_a_stop_in_a_task_group_is_an_error(run: Callable[..., JobHandle]) -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(stop())
            group.create_task(fail())

    async def stop() -> None:
        body = current_job()
        assert body is not None
        body.cancel_job()
        body.raise_if_cancelled()

    async def fail() -> None:
        raise ValueError("wrong")

    def loops() -> None:
        asyncio.run(main())

    assert run(loops).job_status() is JobStatus.ERROR


def test_current_job_is_that_of_the_context_after_the_body(run: Callable[..., JobHandle]) -> None:
    """A thread that outlives its body has a handle of an attempt that has ended: it writes nothing."""
    contexts: list[Any] = []

    def keeps() -> None:
        contexts.append(contextvars.copy_context())

    handle = run(keeps)
    assert isinstance(contexts[0].get(running), CurrentRun)
    job = contexts[0].run(current_job)
    assert job is not None
    job.set_message("late")
    assert handle.job_message() == ""
    assert job.cancel_requested()
