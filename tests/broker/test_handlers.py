"""Handlers of Celery's publish signals run at the submit, and their changes stay (fault 12)."""

import json
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import pytest
from celery import signals
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from jobhandle_celery import Job, JobStatus, ValidationError
from tests.broker.messages import ADD, Make, received
from tests.broker.retries import retry_job

tenant: ContextVar[str | None] = ContextVar("tenant", default=None)


@pytest.fixture
def calls() -> Iterator[list[str]]:
    """Handlers of a service that adds a tenant to each message, as tracers add a span."""
    calls: list[str] = []

    def before(headers: Any = None, **_: Any) -> None:
        calls.append(f"before {headers['id']}")
        headers["tenant"] = tenant.get()

    def after(headers: Any = None, **_: Any) -> None:
        calls.append(f"after {headers['id']}")

    signals.before_task_publish.connect(before)
    signals.after_task_publish.connect(after)
    yield calls
    signals.before_task_publish.disconnect(before)
    signals.after_task_publish.disconnect(after)


def as_tenant(name: str) -> None:
    tenant.set(name)


def paired(handle: Any) -> list[str]:
    task_id = handle.get_job().task_id
    return [f"before {task_id}", f"after {task_id}"]


def test_header_of_handler_is_in_message_of_any_publisher(make: Make, calls: list[str]) -> None:
    app, other = make(), make()
    as_tenant("acme")
    handle = app.jobs.handle()
    handle.submit(Job(**{**vars_of(ADD), "status": JobStatus.WAITING}))
    assert calls == paired(handle)
    as_tenant("boss")
    other.jobs.attach(handle.job_id).release_job()
    assert [message.headers["tenant"] for message in received(app)] == ["acme"]
    handle.cancel_job()
    other.jobs.attach(handle.job_id).resubmit_job()
    assert [message.headers["tenant"] for message in received(app)] == ["acme"]
    # Once for each job submitted, however often it is published.
    assert len(calls) == 2


def vars_of(job: Job) -> dict[str, Any]:
    return {"task": job.task, "args": job.args}


def test_handlers_run_once_for_a_job_published_at_once(make: Make, calls: list[str]) -> None:
    app = make()
    as_tenant("acme")
    handle = app.jobs.handle()
    handle.submit(ADD)
    assert calls == paired(handle)
    assert [message.headers["tenant"] for message in received(app)] == ["acme"]


def test_handlers_run_once_for_each_job_of_submit_many(make: Make, calls: list[str]) -> None:
    app = make()
    as_tenant("acme")
    ids = app.jobs.submit_many([ADD] * 3)
    assert calls == [call for job in sorted(app.jobs.find(ids=ids), key=lambda job: job.id) for call in (
        f"before {job.task_id}", f"after {job.task_id}")]  # fmt: skip
    assert [message.headers["tenant"] for message in received(app)] == ["acme"] * 3


def test_handlers_run_at_submit_in_a_session_not_at_commit(
    make: Make, calls: list[str], sqlite_url: str
) -> None:
    app = make()
    engine = create_engine(sqlite_url)
    with Session(engine) as session:
        as_tenant("acme")
        app.jobs.handle().submit(ADD, session=session)
        assert len(calls) == 2
        as_tenant("boss")
        session.commit()
    engine.dispose()
    assert len(calls) == 2
    assert [message.headers["tenant"] for message in received(app)] == ["acme"]


def test_retry_runs_handlers_and_keeps_headers_of_submit(make: Make, calls: list[str]) -> None:
    app = make()

    def also(headers: Any = None, **_: Any) -> None:
        headers["seen by"] = tenant.get()
        if headers["retries"]:
            headers["only a retry's"] = tenant.get()

    as_tenant("acme")
    signals.before_task_publish.connect(also)
    try:
        app.jobs.handle().submit(ADD)
        (message,) = received(app)
        as_tenant("worker")
        retry_job(app, message)
    finally:
        signals.before_task_publish.disconnect(also)
    (again,) = received(app)
    assert len(calls) == 4
    assert (again.headers["tenant"], again.headers["seen by"]) == ("acme", "acme")
    assert again.headers["only a retry's"] == "worker"


def test_handler_may_change_arguments_priority_and_argsrepr(make: Make) -> None:
    app = make()

    def change(headers: Any = None, body: Any = None, properties: Any = None, **_: Any) -> None:
        body[1]["y"] = 7
        properties["priority"] = 5
        headers["argsrepr"] = "hidden"

    signals.before_task_publish.connect(change)
    try:
        handle = app.jobs.handle()
        handle.submit(Job(task="tests.add", args=[1], kwargs={"y": 2}))
    finally:
        signals.before_task_publish.disconnect(change)
    (message,) = received(app)
    assert (json.loads(message.body)[1], message.properties["priority"]) == ({"y": 7}, 5)
    assert message.headers["argsrepr"] == "hidden"
    assert (handle.get_job().kwargs, handle.get_job().priority) == ({"y": 7}, 5)


@pytest.mark.parametrize("where", ["properties", "headers"])
def test_unkept_addition_of_handler_is_refused(make: Make, where: str) -> None:
    app = make()

    def add(**given: Any) -> None:
        if where == "properties":
            given["properties"]["app_id"] = "a service"
        else:
            given["headers"]["handler's"] = object()

    signals.before_task_publish.connect(add)
    try:
        with pytest.raises(ValidationError, match="^app_id" if where == "properties" else "^headers"):
            app.jobs.handle().submit(ADD)
    finally:
        signals.before_task_publish.disconnect(add)
    assert app.jobs.find() == []


def test_handlers_see_no_sensitive_argument(make: Make) -> None:
    app = make()
    shown = []

    def look(headers: Any = None, **_: Any) -> None:
        shown.append((headers["argsrepr"], headers["kwargsrepr"]))

    signals.before_task_publish.connect(look)
    try:
        app.jobs.handle().submit(
            Job(task="tests.add", args=["secret"], kwargs={"y": 2}, sensitive=["x", "y"])
        )
    finally:
        signals.before_task_publish.disconnect(look)
    assert shown == [("('***',)", "{'y': '***'}")]
    (message,) = received(app)
    assert message.headers["argsrepr"] == "('***',)"


def test_times_of_scheduled_job_are_in_its_row_only(make: Make, calls: list[str]) -> None:
    app = make()
    handle = app.jobs.handle()
    handle.submit(app.tasks["tests.add"].s(1, 2).set(countdown=60, expires=3600))
    job = handle.get_job()
    assert round((job.scheduled_for - job.submitted) / timedelta(minutes=1)) == 1
    assert round((job.expires - job.submitted) / timedelta(hours=1)) == 1
    assert len(calls) == 2
