"""A job's message in the process of a body, traced as a pool process traces it.

Signals are compared with those of the same task as a plain one; no worker process is needed for that. Whole
lives, with the main process and events, are in tests/worker/test_signals.py.
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from celery import signals
from celery.app.trace import trace_task
from celery.exceptions import Ignore, Reject

from jobhandle_celery import Job, JobHandle, JobStatus, StopRequested
from jobhandle_celery.broker.headers import job_headers
from jobhandle_celery.runtime import Runtime, runtime_of
from jobhandle_celery.store import Worker
from jobhandle_celery.worker.outcomes import GivenBack, Report

SIGNALS = [name for name in dir(signals) if name.startswith("task_") and name != "task_sent"]


def returns() -> str:
    return "done"


def fails() -> None:
    raise ValueError("no good")


def ignores() -> None:
    raise Ignore


def rejects() -> None:
    raise Reject("no", requeue=False)


def stops() -> None:
    raise StopRequested("enough")


def retries(task: Any) -> None:
    raise task.retry(countdown=60)


class Child:
    """A pool process, as Celery's tracer sees it."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.runtime: Runtime = runtime_of(app)
        self.runtime.worker = Worker("w1@here", str(uuid.uuid4()), 1)
        self.runtime.store.leases.renew(self.runtime.worker)
        self.seen: list[str] = []
        for body in (returns, fails, ignores, rejects, stops):
            app.task(name=body.__name__, shared=False)(body)
        app.task(name="retries", bind=True, shared=False)(retries)

    def submit(self, name: str, **fields: Any) -> tuple[JobHandle, dict[str, Any]]:
        """Return a job, and its message as a worker receives it."""
        handle = self.app.jobs.handle()
        handle.submit(Job(task=name, **fields))
        task_id = handle.get_job().task_id
        return handle, {"id": task_id, "task": name, **job_headers(handle.job_id, 1)}

    def trace(self, name: str, headers: dict[str, Any] | None = None, **delivery: Any) -> Any:
        """Trace a message; without headers, a plain one."""
        headers = dict(headers or {"id": str(uuid.uuid4()), "task": name})
        request = {"is_eager": False, "hostname": "w1@here", "delivery_info": delivery, **headers}
        with recorded(self.seen):
            return trace_task(self.app.tasks[name], headers["id"], (), {}, request, app=self.app)


@contextmanager
def recorded(seen: list[str]) -> Iterator[None]:
    seen.clear()
    receivers: dict[str, Callable[..., None]] = {}
    for name in SIGNALS:
        receivers[name] = lambda name=name, **given: seen.append(
            f"{name} {given['state']}" if name == "task_postrun" else name
        )
        getattr(signals, name).connect(receivers[name], weak=False)
    try:
        yield
    finally:
        for name, receiver in receivers.items():
            getattr(signals, name).disconnect(receiver)


@pytest.fixture
def child(sqlite_url: str, make_jobs_app: Callable[..., Any]) -> Child:
    return Child(make_jobs_app(sqlite_url, result_backend="cache+memory://", task_publish_retry=False))


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("returns", JobStatus.FINISHED),
        ("fails", JobStatus.ERROR),
        ("ignores", JobStatus.FINISHED),
        ("rejects", JobStatus.ERROR),
        ("retries", JobStatus.REQUEUED),
    ],
)
def test_signals_of_a_run_are_those_of_a_plain_task(child: Child, name: str, status: JobStatus) -> None:
    child.trace(name)
    plain = list(child.seen)
    handle, headers = child.submit(name)
    assert not isinstance(child.trace(name, headers).runtime, Report)
    assert child.seen == plain != []
    assert handle.job_status() is status


def cancelled(child: Child) -> tuple[JobHandle, dict[str, Any]]:
    handle, headers = child.submit("returns")
    handle.cancel_job()
    return handle, headers


def expired(child: Child) -> tuple[JobHandle, dict[str, Any]]:
    return child.submit("returns", expires=timedelta(seconds=-1))


def early(child: Child) -> tuple[JobHandle, dict[str, Any]]:
    return child.submit("returns", scheduled_for=timedelta(hours=1))


def done(child: Child) -> tuple[JobHandle, dict[str, Any]]:
    handle, headers = child.submit("returns")
    child.trace("returns", headers)
    return handle, headers


def unanswered(child: Child) -> tuple[JobHandle, dict[str, Any]]:
    """The claim raises an internal error."""

    def broken(*_: Any) -> Any:
        raise AttributeError("a bug")

    child.runtime.store.runs.claim = broken  # type: ignore[method-assign, assignment]
    return child.submit("returns")


def reported(report: Report | None) -> object:
    """Return what the main process does about a rejected message."""
    if report is None:
        return None
    return type(report.unwritten) if report.unwritten else report.revoked


@pytest.mark.parametrize(
    ("prepare", "report"),
    [
        (cancelled, "revoked"),
        (expired, "expired"),
        (early, None),
        (done, None),
        (unanswered, GivenBack),
    ],
)
def test_refused_message_sends_no_signal_of_a_run(child: Child, prepare: Any, report: object) -> None:
    """Tools that count or trace runs see none for a job that does not start (fault 17)."""
    handle, headers = prepare(child)
    before = handle.get_job()
    traced = child.trace("returns", headers)
    assert child.seen == []
    assert isinstance(traced.info.retval, Ignore)
    assert traced.info.state == "IGNORED"
    assert reported(traced.runtime) == report
    after = handle.get_job()
    assert (after.started, after.attempt) == (before.started, before.attempt)


def test_refusal_of_a_cancelled_job_is_reported_once(child: Child) -> None:
    handle, headers = cancelled(child)
    assert [reported(child.trace("returns", headers).runtime) for _ in range(2)] == ["revoked", None]
    assert child.app.AsyncResult(handle.get_job().task_id).state == "REVOKED"


def test_stop_is_celerys_ignore_and_a_report(child: Child) -> None:
    """Tools do not report Celery's own Ignore as an error (fault 17)."""
    handle, headers = child.submit("stops")
    traced = child.trace("stops", headers)
    assert child.seen == ["task_prerun", "task_postrun IGNORED"]
    assert type(traced.info.retval) is Ignore
    assert traced.runtime == Report(None, None, "revoked")
    assert (handle.job_status(), handle.job_message()) == (JobStatus.CANCELLED, "enough")


def test_retry_of_a_cancelled_job_is_reported_revoked(child: Child) -> None:
    def cancels_and_retries(task: Any) -> None:
        handle.cancel_job()
        raise task.retry(countdown=60)

    child.app.task(name="cancels_and_retries", bind=True, shared=False)(cancels_and_retries)
    handle, headers = child.submit("cancels_and_retries")
    traced = child.trace("cancels_and_retries", headers)
    assert traced.runtime == Report(None, None, "revoked")
    assert handle.job_status() is JobStatus.CANCELLED


@pytest.mark.parametrize("name", ["returns", "fails"])
def test_outcome_is_written_without_signal_receivers(
    child: Child, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals.task_success, "receivers", [])
    monkeypatch.setattr(signals.task_failure, "receivers", [])
    handle, headers = child.submit(name)
    child.trace(name, headers)
    assert handle.job_status() is (JobStatus.FINISHED if name == "returns" else JobStatus.ERROR)


def test_job_deduplicated_by_celery_is_given_back(child: Child) -> None:
    """A redelivered message whose task id has a result starts no body: it may be the former attempt's."""
    child.app.conf.update(task_acks_late=True, worker_deduplicate_successful_tasks=True)
    handle, headers = child.submit("returns")
    child.app.backend.store_result(headers["id"], "former", "SUCCESS")
    child.trace("returns", headers, redelivered=True)
    assert child.seen == []
    assert handle.job_status() is JobStatus.REQUEUED
    headers |= job_headers(handle.job_id, 2)
    child.trace("returns", headers)
    assert handle.result(timeout=0) == "done"
