"""replay-events: the events that a listener receives, and the state that Celery builds from them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from celery.events.state import State

from jobhandle_celery import Failure, Job, JobStatus, schema
from jobhandle_celery.runtime import runtime_of
from tests.apps import make_app
from tests.cli.runner import Shell, run_command
from tests.job_factory import ADD, NOBODY_LISTENS, JobFactory, set_times
from tests.support import eventually
from tests.worker.cluster import Events


@pytest.fixture
def redis_factory(factory: JobFactory, redis_url: str) -> JobFactory:
    """A factory on each kind of database whose broker is a Redis, to which events can be sent."""
    factory.jobs.close()
    app: Any = make_app(redis_url, factory.url)
    factory.app, factory.jobs, factory.store = app, app.jobs, runtime_of(app).store
    return factory


Received = Callable[[int], Any]


@contextmanager
def listening(app: Any) -> Iterator[Received]:
    """Listen as Flower does; the function waits for so many task events and returns their `State`."""
    events = Events(app)

    def task_events() -> list[dict[str, Any]]:
        return [event for event in list(events._seen) if event["type"].startswith("task-")]

    def state(count: int) -> Any:
        eventually(lambda: len(task_events()) >= count)
        state = State()
        for event in task_events():
            state.event(event)
        return state

    try:
        yield state
    finally:
        events.close()


def replay(app: Any) -> tuple[dict[str, int], Any]:
    """Replay the last hour; return the counts, and the state of a listener."""
    with listening(app) as received:
        result = run_command(app, "replay-events", "--since", "1h", "--json")
        assert result.code == 0
        return result.document, received(result.document["events"])


def test_replay_rebuilds_the_state_of_each_job(redis_factory: JobFactory) -> None:
    handles = {status: redis_factory.job_in(status) for status in JobStatus}
    counts, state = replay(redis_factory.app)
    assert counts["jobs"] == len(JobStatus)
    assert all(task.replayed for task in state.tasks.values())  # a counter of events can skip them (fault 20)
    tasks = {status: state.tasks[handle.get_job().task_id] for status, handle in handles.items()}
    assert {status: task.state for status, task in tasks.items()} == {
        JobStatus.SUBMITTED: "PENDING",
        JobStatus.RESUBMITTED: "PENDING",
        JobStatus.QUEUED: "PENDING",
        JobStatus.WAITING: "PENDING",
        JobStatus.REQUEUED: "RETRY",
        JobStatus.RUNNING: "STARTED",
        JobStatus.FINISHED: "SUCCESS",
        JobStatus.ERROR: "FAILURE",
        JobStatus.CANCELLED: "REVOKED",
    }
    for status, task in tasks.items():
        assert task.name == "tests.add"
        assert task.args == "(2, 3)"
        assert task.kwargs == f"{{'job_id': {handles[status].job_id}}}"
    finished, error = tasks[JobStatus.FINISHED], tasks[JobStatus.ERROR]
    submitted, started, ended = redis_factory.jobs.events(handles[JobStatus.FINISHED].job_id)
    assert finished.result == "5"
    assert finished.worker.hostname == "worker@host"
    assert finished.sent == pytest.approx(submitted.at.timestamp())
    assert finished.started == pytest.approx(started.at.timestamp())
    assert finished.succeeded == pytest.approx(ended.at.timestamp())
    assert finished.runtime == pytest.approx((ended.at - started.at).total_seconds())
    assert "no good" in error.exception


def test_replay_omits_former_rounds_and_old_jobs(redis_factory: JobFactory) -> None:
    handle = redis_factory.job_in(JobStatus.FINISHED)
    handle.resubmit_job()
    old = redis_factory.jobs.handle().submit(ADD)
    long_ago = datetime(2001, 1, 1, tzinfo=UTC)
    set_times(redis_factory, schema.job_event.c.at, long_ago, schema.job_event.c.job_id == old)
    counts, state = replay(redis_factory.app)
    assert counts == {"jobs": 1, "events": 1}
    assert set(state.tasks) == {handle.get_job().task_id}


def test_replay_of_a_retried_job_ends_as_the_job(redis_factory: JobFactory) -> None:
    handle = redis_factory.jobs.handle()
    handle.submit(Job(task="tests.add", args=[2, 3], max_attempts=2))
    run = redis_factory.claim(handle)
    redis_factory.store.recovery.give_back(run, "its worker shut down", run.worker)
    second = redis_factory.claim(handle)
    redis_factory.store.runs.fail(second, Failure("task", "ValueError", "no good", "Traceback: here"))
    task = replay(redis_factory.app)[1].tasks[handle.get_job().task_id]
    assert task.state == "FAILURE"
    assert task.retries == 1
    assert task.traceback == "Traceback: here"


def test_replay_redacts_hidden_and_sensitive_arguments(redis_factory: JobFactory) -> None:
    sensitive, hidden = redis_factory.jobs.handle(), redis_factory.jobs.handle()
    sensitive.submit(Job(task="tests.add", kwargs={"x": 123456, "y": 1}, sensitive=["x"]))
    signature = redis_factory.app.tasks["tests.add"].s(123456, 2)
    hidden.submit(signature.set(argsrepr="(***)", kwargsrepr="***"))
    tasks = replay(redis_factory.app)[1].tasks
    task = tasks[sensitive.get_job().task_id]
    assert task.kwargs == f"{{'job_id': {sensitive.job_id}, 'x': '***', 'y': 1}}"
    task = tasks[hidden.get_job().task_id]
    assert (task.args, task.kwargs) == ("(***)", f"{{'job_id': {hidden.job_id}, 'kwargs': '***'}}")


def test_replay_without_a_broker_is_one_line(sqlite_url: str) -> None:
    result = Shell(sqlite_url, NOBODY_LISTENS).run("replay-events", "--since", "1h")
    assert result.code == 5
    assert "the broker is unavailable" in result.error
