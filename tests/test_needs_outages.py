"""What keeps the results of needs from a job after its claim: an outage of the database, or a time limit."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from celery import chain
from celery.app.trace import trace_task_ret

from jobhandle_celery import Job, JobStatus
from jobhandle_celery.errors import DatabaseUnavailableError
from jobhandle_celery.runtime import runtime_of
from jobhandle_celery.worker import tree_member
from jobhandle_celery.worker.outcomes import GivenBack, Report
from tests.in_process import become_worker, message_of, run
from tests.needing import submit, taking
from tests.tree_rows import leaf


@pytest.fixture
def app(sqlite_url: str, make_jobs_app: Callable[..., Any]) -> Any:
    app = make_jobs_app(sqlite_url)
    become_worker(app)
    return app


def test_database_outage_after_claim_gives_the_job_back(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The body never starts with other arguments, and the run counts as no loss."""
    handle = submit(app, Job(task=taking(app), args=["own"]), leaf(1))
    store = runtime_of(app).store

    def away(job_id: int, limit: int) -> Any:
        raise DatabaseUnavailableError("away")

    monkeypatch.setattr(tree_member, "READ_TIMEOUT", 0.3)
    monkeypatch.setattr(store.queries, "results_needed", away)
    report = traced(app, message_of(app))
    assert isinstance(report, Report)
    assert isinstance(report.unwritten, GivenBack)
    assert handle.job_status() is JobStatus.RUNNING
    report.unwritten.write(store)
    assert handle.job_status() is JobStatus.REQUEUED
    monkeypatch.undo()
    runtime_of(app).submitter.send([handle.job_id])
    run(app, message_of(app))
    assert handle.result(timeout=0) == [[1, "own"], {}]


@pytest.mark.parametrize("interrupted", ["results_needed", "start_ancestors"])
def test_soft_limit_before_the_body_gives_the_job_back(
    app: Any, interrupted: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may interrupt the read of the results, or the statement that makes the nodes above Running."""
    task, runtime = app.signature(taking(app)), runtime_of(app)
    handle = app.jobs.handle()
    handle.submit(chain(task.clone((1,)), task.clone((2,))))
    run(app, message_of(app))
    runtime.started_nodes.clear()
    store: Any = {"results_needed": runtime.store.queries, "start_ancestors": runtime.store.settling}

    def limited(*_: object) -> None:
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(store[interrupted], interrupted, limited)
    unwritten = traced(app, message_of(app)).unwritten
    assert isinstance(unwritten, GivenBack)
    assert unwritten.reason == "its soft time limit has passed before its body began"
    second = handle.members()[1]
    assert (unwritten.run.job_id, second.status) == (second.id, JobStatus.RUNNING)
    assert f"job {second.id} was not started: {unwritten.reason}" in caplog.text


def test_short_database_outage_after_claim_delays_the_body(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = submit(app, Job(task=taking(app), args=["own"]), leaf(1))
    queries = runtime_of(app).store.queries
    read, answers = queries.results_needed, iter([False, False, True])

    def sometimes(job_id: int, limit: int) -> Any:
        if not next(answers):
            raise DatabaseUnavailableError("away")
        return read(job_id, limit)

    monkeypatch.setattr(queries, "results_needed", sometimes)
    run(app, message_of(app))
    assert handle.result(timeout=0) == [[1, "own"], {}]


def traced(app: Any, message: Any) -> Any:
    """Return what the process of a body reports to its main process."""
    task = app.tasks[message.headers["task"]]
    args, kwargs, _ = json.loads(message.body)
    request = {**message.headers, "args": args, "kwargs": kwargs}
    content = "application/json", "utf-8"
    return trace_task_ret(task.name, request["id"], request, message.body, *content, app=app)[2]
