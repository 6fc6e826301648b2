"""replay-events: what somebody who listens at the broker hears, and what Celery's own state makes of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from celery.events.state import State

from jobhandle_celery import Failure, Job, JobStatus, schema
from tests.apps import make_app
from tests.cli.conftest import set_moments
from tests.cli.typed import Shell, typed
from tests.support import eventually
from tests.test_handle import ADD, NOBODY_LISTENS, Stage
from tests.worker.site import Events


class Theatre(Stage):
    """A stage whose broker is a Redis."""

    app: Any

    def __init__(self, database_url: str, broker_url: str) -> None:
        super().__init__(database_url)
        self.jobs.close()
        self.app = make_app(broker_url, database_url)
        self.jobs = self.app.jobs


@pytest.fixture
def theatre(database_url: str, redis_url: str) -> Iterator[Theatre]:
    theatre = Theatre(database_url, redis_url)
    yield theatre
    theatre.close()


@contextmanager
def listening(app: Any) -> Iterator[Callable[[int], Any]]:
    """Listen as Flower does; the function given waits for so many events and returns what they make."""
    events = Events(app)

    def state(count: int) -> Any:
        eventually(lambda: len(tasks()) >= count, 60)
        made = State()
        for event in tasks():
            made.event(event)
        return made

    def tasks() -> list[dict[str, Any]]:
        return [event for event in list(events._seen) if event["type"].startswith("task-")]

    try:
        yield state
    finally:
        events.close()


def test_a_restarted_flower_hears_how_jobs_went(theatre: Theatre) -> None:
    handles = {status: theatre.job_in(status) for status in JobStatus}
    with listening(theatre.app) as heard:
        sent = typed(theatre.app, "replay-events", "--since", "1h", "--json")
        assert sent.code == 0
        assert sent.document["jobs"] == len(JobStatus)
        state = heard(sent.document["events"])
    assert all(task.replayed for task in state.tasks.values())  # who counts events leaves them out (fault 20)
    states = {status: state.tasks[handle.get_job().task_id] for status, handle in handles.items()}
    assert {status: task.state for status, task in states.items()} == {
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
    for status, task in states.items():
        job = handles[status].get_job()
        assert task.name == "tests.add"
        assert task.args == "(2, 3)"
        assert task.kwargs == f"{{'job_id': {job.id}}}"
    finished, error = states[JobStatus.FINISHED], states[JobStatus.ERROR]
    submitted, started, ended = theatre.jobs.events(handles[JobStatus.FINISHED].job_id)
    assert finished.result == "5"
    assert finished.worker.hostname == "worker@host"
    assert finished.sent == pytest.approx(submitted.at.timestamp())
    assert finished.started == pytest.approx(started.at.timestamp())
    assert finished.succeeded == pytest.approx(ended.at.timestamp())
    assert finished.runtime == pytest.approx((ended.at - started.at).total_seconds())
    assert "no good" in error.exception


def test_only_the_latest_round_and_only_recent_jobs_are_told(theatre: Theatre) -> None:
    handle = theatre.job_in(JobStatus.FINISHED)
    former = handle.get_job().task_id
    handle.resubmit_job()
    old = theatre.jobs.handle().submit(ADD)
    long_ago = datetime(2001, 1, 1, tzinfo=UTC)
    set_moments(theatre, schema.job_event.c.at, long_ago, schema.job_event.c.job_id == old)
    with listening(theatre.app) as heard:
        sent = typed(theatre.app, "replay-events", "--since", "1h", "--json").document
        state = heard(sent["events"])
    assert sent == {"jobs": 1, "events": 1}
    assert set(state.tasks) == {handle.get_job().task_id}
    assert former not in state.tasks


def test_a_task_that_was_tried_again_ends_as_its_job_did(theatre: Theatre) -> None:
    handle = theatre.jobs.handle()
    handle.submit(Job(task="tests.add", args=[2, 3], max_attempts=2))
    run = theatre.claim(handle)
    theatre.store.give_back(run, "its worker shut down", run.worker)
    again = theatre.claim(handle)
    theatre.store.fail(again, Failure("task", "ValueError", "no good", "Traceback: here"))
    with listening(theatre.app) as heard:
        sent = typed(theatre.app, "replay-events", "--since", "1h", "--json").document
        task = heard(sent["events"]).tasks[handle.get_job().task_id]
    assert task.state == "FAILURE"
    assert task.retries == 1
    assert task.traceback == "Traceback: here"


def test_what_is_hidden_stays_hidden(theatre: Theatre) -> None:
    handle = theatre.jobs.handle()
    handle.submit(Job(task="tests.add", kwargs={"x": 123456, "y": 1}, sensitive=["x"]))
    signature = theatre.app.tasks["tests.add"].s(123456, 2).set(argsrepr="(***)", kwargsrepr="***")
    other = theatre.jobs.handle()
    other.submit(signature)
    with listening(theatre.app) as heard:
        sent = typed(theatre.app, "replay-events", "--since", "1h", "--json").document
        state = heard(sent["events"])
    task = state.tasks[handle.get_job().task_id]
    assert task.kwargs == f"{{'job_id': {handle.job_id}, 'x': '***', 'y': 1}}"
    shown = state.tasks[other.get_job().task_id]
    assert (shown.args, shown.kwargs) == ("(***)", f"{{'job_id': {other.job_id}, 'kwargs': '***'}}")


def test_a_broker_that_is_away_is_one_line(sqlite_url: str) -> None:
    answer = Shell(sqlite_url, NOBODY_LISTENS).run("replay-events", "--since", "1h")
    assert answer.code == 5
    assert "the broker cannot be reached" in answer.error
