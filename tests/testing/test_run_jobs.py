"""`run_jobs` and `perform`: the way of a worker, in this process."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import chain, chord, current_app, group, signals

from jobhandle_celery import (
    Job,
    JobCancelledError,
    JobStatus,
    StopRequested,
    ValidationError,
    WaitTimeoutError,
    current_job,
)
from jobhandle_celery.testing import JobsKit
from tests.testing import service
from tests.testing.service import add, fail, functions, note, report, retry_until, steps, total


def test_job_runs_through_a_claim_of_a_worker(jobs: JobsKit) -> None:
    handle = service.jobs.handle(username="ann")
    job_id = handle.submit(report.s("a.tif"))
    assert handle.job_status() is JobStatus.QUEUED
    (job,) = jobs.run_jobs()
    assert (job.id, job.status, job.result, job.message) == (job_id, "Finished", "a.tif", "half of a.tif")
    assert (job.attempt, job.progress and job.progress.fraction) == (1, 0.5)
    assert [event.actor.partition("@")[0] for event in handle.events()] == ["user ann", *["worker test"] * 2]
    assert steps == [("a.tif", "ann")]
    assert jobs.run_jobs() == []


def test_signals_of_a_worker_are_sent(jobs: JobsKit) -> None:
    sent: list[str] = []
    names = ("task_received", "task_prerun", "task_success", "task_postrun")
    receivers = {name: lambda name=name, **_: sent.append(name) for name in names}
    for name, receiver in receivers.items():
        getattr(signals, name).connect(receiver)
    jobs.submit(add.s(1, 2))
    jobs.run_jobs()
    assert sent == list(names)


def test_app_is_the_current_one_in_a_body(jobs: JobsKit) -> None:
    before = current_app._get_current_object()  # type: ignore[attr-defined]  # of a proxy
    functions["current"] = lambda: current_app.main
    assert before is not service.app
    assert jobs.perform(service.call.s("current")) == "service"
    assert current_app._get_current_object() is before  # type: ignore[attr-defined]


def test_error_of_a_body_ends_its_job_alone(jobs: JobsKit) -> None:
    jobs.submit_many([fail.s("no such key"), note.s(1)])
    failed, noted = jobs.run_jobs()
    assert (failed.status, noted.status) == ("Error", "Finished")
    assert failed.error is not None
    assert (failed.error.kind, failed.error.type) == ("task", "KeyError")


def test_retries_run_without_their_delay(jobs: JobsKit) -> None:
    jobs.submit(retry_until.s(2))
    (job,) = jobs.run_jobs()
    assert (job.status, job.result, job.attempt, steps) == ("Finished", 2, 3, [0, 1, 2])


def test_jobs_that_bodies_submit_run_as_well(jobs: JobsKit) -> None:
    jobs.submit(service.submit_another.s("inner"))
    first, second = jobs.run_jobs()
    assert (first.result, second.username, steps) == (second.id, "another", ["inner"])


def test_trees_run_to_their_end(jobs: JobsKit) -> None:
    tree = chord([add.s(1, 2), chain(add.s(3, 4), add.s(5))], total.s())
    root = jobs.submit(group(tree, note.s("beside")))
    jobs.run_jobs()
    assert jobs.attach(root).result(timeout=0) == [15, "beside"]


def test_cancelled_job_does_not_run(jobs: JobsKit) -> None:
    handle = jobs.handle()
    handle.submit(note.s(1))
    handle.cancel_job()
    assert jobs.run_jobs() == []
    assert (handle.job_status(), steps) == (JobStatus.CANCELLED, [])


def test_body_that_is_asked_to_stop_is_cancelled(jobs: JobsKit) -> None:
    def stop() -> None:
        job: Any = current_job()
        assert jobs.attach(job.job_id).cancel_job() is JobStatus.RUNNING
        with pytest.raises(StopRequested):
            job.raise_if_cancelled()
        job.raise_if_cancelled()

    functions["stop"] = stop
    jobs.submit(service.call.s("stop"))
    assert [job.status for job in jobs.run_jobs()] == ["Cancelled"]


def test_scheduled_jobs_run_only_if_asked_for(jobs: JobsKit) -> None:
    for hours in (3, 1, 2):
        jobs.submit(Job(task=note.name, args=[hours], scheduled_for=timedelta(hours=hours)))
    jobs.submit(Job(task=note.name, args=["held"], status=JobStatus.WAITING))
    assert jobs.run_jobs() == []
    jobs.run_jobs(with_scheduled=timedelta(hours=1.5))
    assert steps == [1]
    jobs.run_jobs(with_scheduled=datetime.now(UTC) + timedelta(hours=2.5))
    assert steps == [1, 2]
    jobs.run_jobs(with_scheduled=True)
    assert steps == [1, 2, 3]


@pytest.mark.parametrize("wrong", ["yes", 1, 3600.0, None])
def test_other_values_of_with_scheduled_are_refused(jobs: JobsKit, wrong: Any) -> None:
    """A number of seconds would run all of them."""
    with pytest.raises(ValidationError, match=r"^with_scheduled: "):
        jobs.run_jobs(with_scheduled=wrong)


def test_countdown_within_a_tree_is_a_scheduled_time(jobs: JobsKit) -> None:
    root = jobs.submit(chain(add.s(1, 2), add.s(3).set(countdown=60)))
    jobs.run_jobs()
    assert jobs.attach(root).job_status() is JobStatus.RUNNING
    jobs.run_jobs(with_scheduled=True)
    assert jobs.attach(root).result(timeout=0) == 6


def test_durable_calls_are_jobs(jobs: JobsKit) -> None:
    with service.jobs.submitting(username="ann"):
        result = service.durable.delay(4)
    jobs.assert_submitted(service.durable, args=[4], username="ann")
    assert steps == []
    jobs.run_jobs()
    assert (result.get(), steps) == (8, [4])


def test_plain_calls_are_dropped(jobs: JobsKit) -> None:
    service.plain.delay(1)
    assert jobs.run_jobs() == []
    assert steps == []


def test_unknown_task_stays_submitted(jobs: JobsKit, caplog: pytest.LogCaptureFixture) -> None:
    job_id = jobs.submit(Job(task="another.service"))
    assert jobs.run_jobs() == []
    assert jobs.attach(job_id).job_status() is JobStatus.SUBMITTED
    assert "does not know its task another.service" in caplog.text


def test_job_without_end_is_an_error(jobs: JobsKit) -> None:
    jobs.submit(service.submit_itself.s())
    with pytest.raises(
        RuntimeError, match=r"5 messages were delivered, and there are more\. Does a job .* job 5"
    ):
        jobs.run_jobs(most=5)


def test_wait_in_a_body_is_refused_as_in_a_worker(jobs: JobsKit) -> None:
    functions["wait"] = lambda: jobs.attach(jobs.submit(note.s(1))).wait()
    with pytest.raises(RuntimeError, match="never wait for a job within a task"):
        jobs.perform(service.call.s("wait"))


@pytest.mark.parametrize("timeout", [None, 60])
def test_wait_that_cannot_end_fails_at_once(jobs: JobsKit, timeout: float | None) -> None:
    handle = jobs.handle()
    handle.submit(note.s(1))
    with pytest.raises(WaitTimeoutError, match=r"job 1 has not ended, .* call jobs.run_jobs\(\) before"):
        handle.wait(timeout)
    with pytest.raises(WaitTimeoutError, match="job 2 has not ended"):
        service.durable.delay(1).get(timeout)


def test_coroutine_submits_and_waits_as_a_thread_does(jobs: JobsKit) -> None:
    async def test() -> None:
        async with service.jobs.async_handle(username="ann") as handle:
            await handle.submit(report.s("a.tif"))
            with pytest.raises(WaitTimeoutError, match="job 1 has not ended"):
                await handle.result()
            seen = handle.watch()
            assert (await anext(seen)).status is JobStatus.QUEUED
            with pytest.raises(WaitTimeoutError, match="job 1 has not ended"):
                await anext(seen)
            jobs.run_jobs()
            assert await handle.result() == "a.tif"
            assert [record.status async for record in handle.watch()] == ["Finished"]

    asyncio.run(test())
    assert steps == [("a.tif", "ann")]


def test_coroutine_waits_while_another_one_runs_the_jobs(jobs: JobsKit) -> None:
    async def test() -> None:
        async with service.jobs.async_handle() as handle:
            await handle.submit(note.s("waited for"))
            waiting = asyncio.create_task(handle.result(timeout=60))
            await asyncio.sleep(0)  # until it waits
            jobs.run_jobs()
            assert await waiting == "waited for"

    asyncio.run(test())


def test_failed_test_in_a_body_fails_the_test(jobs: JobsKit) -> None:
    functions["fail"] = lambda: pytest.fail("must not be called")
    jobs.submit(service.call.s("fail"))
    with pytest.raises(pytest.fail.Exception, match="must not be called"):
        jobs.run_jobs()


def test_bodies_run_outside_of_the_event_loop_of_a_test(jobs: JobsKit) -> None:
    async def body() -> str:
        return "from a coroutine"

    async def test() -> None:
        functions["loop"] = lambda: asyncio.run(body())
        jobs.submit(service.call.s("loop"))
        (job,) = jobs.run_jobs()
        assert job.result == "from a coroutine"
        assert jobs.perform(add.s(1, 2)) == 3

    asyncio.run(test())


def test_perform_returns_what_the_body_returns_and_runs_nothing_else(jobs: JobsKit) -> None:
    jobs.submit(note.s("waits"))
    assert jobs.perform(report.s("a.tif"), username="ann") == "a.tif"
    assert steps == [("a.tif", "ann")]
    assert jobs.perform(chord([add.s(1, 2), add.s(3, 4)], total.s())) == 10
    assert jobs.perform(retry_until.s(3)) == 3
    assert jobs.perform(Job(task=note.name, args=[1], scheduled_for=timedelta(days=1))) == 1
    assert "waits" not in steps


def test_perform_raises_what_the_body_raised(jobs: JobsKit) -> None:
    with pytest.raises(KeyError, match="no such key") as raised:
        jobs.perform(fail.s("no such key"))
    assert raised.traceback[-1].name == "fail"
    with pytest.raises(KeyError):
        jobs.perform(chain(fail.s("in a tree"), note.s()))


def test_perform_of_a_job_that_is_not_performed(jobs: JobsKit) -> None:
    with pytest.raises(JobCancelledError):
        jobs.perform(Job(task=note.name, args=[1], expires=-1))
    with pytest.raises(WaitTimeoutError):
        jobs.perform(Job(task=note.name, args=[1], status="Waiting"))  # type: ignore[arg-type]  # a word
    assert steps == []
