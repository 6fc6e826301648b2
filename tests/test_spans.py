"""Which statements become spans of an instrumented driver, and what the span of a task shows (fault 33).

With stand-ins for OpenTelemetry; tests/ecosystem has the real one.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import event

from jobhandle_celery import Job, JobStatus
from jobhandle_celery.completion import WaitCondition
from jobhandle_celery.runtime import runtime_of
from jobhandle_celery.worker.bootstep import PeriodicThread
from jobhandle_celery.worker.lease import Lease
from tests.in_process import become_worker, message_of, run
from tests.servers import execute
from tests.support import eventually


class Instrumentation(ModuleType):
    """The statements of instrumented drivers that would become spans."""

    def __init__(self) -> None:
        super().__init__("opentelemetry.instrumentation.utils")
        self.spans: list[str] = []
        self._suppressed = ContextVar("suppressed", default=False)

    @contextmanager
    def suppress_instrumentation(self) -> Iterator[None]:
        token = self._suppressed.set(True)
        yield
        self._suppressed.reset(token)

    def note(self, _c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not self._suppressed.get():
            self.spans.append(statement)


class Tracer(ModuleType):
    """A tracer whose current span is always the same."""

    def __init__(self) -> None:
        super().__init__("opentelemetry.trace")
        self.attributes: dict[str, Any] = {}

    def get_current_span(self) -> "Tracer":
        return self

    def set_attributes(self, attributes: dict[str, Any]) -> None:
        self.attributes = attributes


@pytest.fixture
def app(sqlite_url: str, make_jobs_app: Callable[..., Any]) -> Iterator[Any]:
    app = make_jobs_app(sqlite_url, task_publish_retry=False)
    become_worker(app)
    yield app
    runtime_of(app).worker = None


@pytest.fixture
def spans(app: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    instrumentation = Instrumentation()
    monkeypatch.setitem(sys.modules, instrumentation.__name__, instrumentation)
    engine = runtime_of(app).store.database.engine
    event.listen(engine, "before_cursor_execute", instrumentation.note)
    yield instrumentation.spans
    event.remove(engine, "before_cursor_execute", instrumentation.note)


@pytest.fixture
def attributes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
    tracer = Tracer()
    monkeypatch.setitem(sys.modules, tracer.__name__, tracer)
    return lambda: tracer.attributes


def test_idle_worker_makes_no_spans(app: Any, spans: list[str]) -> None:
    runtime = runtime_of(app)
    passed = threading.Event()

    def one_pass() -> None:
        runtime.store.sweep.first_due()
        passed.set()

    thread = PeriodicThread("test-housekeeping", 0.001, one_pass)
    assert passed.wait(20)
    thread.end()
    assert runtime.worker is not None
    assert Lease(lambda: runtime.store, runtime.worker, runtime.settings).renew()
    assert spans == []
    one_pass()
    assert len(spans) == 1


def test_mark_of_published_job_makes_no_span(app: Any, spans: list[str], sqlite_url: str) -> None:
    app.jobs.submit(Job(task="tests.add", args=[1, 2]))
    status = "SELECT status_id FROM jobhandle_job"
    eventually(
        lambda: execute(sqlite_url, status) == [(JobStatus.QUEUED.id,)]
    )  # a read of `Jobs` would mark it
    assert any("INSERT INTO jobhandle_job " in span for span in spans)  # a part of the caller's request
    assert not any("UPDATE" in span for span in spans)


def test_polls_of_a_wait_make_no_spans(app: Any, spans: list[str]) -> None:
    runtime, handle = runtime_of(app), app.jobs.handle()
    handle.submit(Job(task="tests.add", args=[1, 2]))
    handle.cancel_job()
    spans.clear()
    assert (
        runtime.completion.begin(WaitCondition(handle.job_id), at_once=True).result(30).status == "Cancelled"
    )
    assert spans == []
    assert runtime.store.queries.final([handle.job_id])
    assert len(spans) == 1


def test_claim_makes_no_span_and_body_does(app: Any, spans: list[str]) -> None:
    seen: list[list[str]] = []

    def body() -> None:
        seen.append(list(spans))

    app.task(name="body", shared=False)(body)
    handle = app.jobs.handle()
    handle.submit(Job(task="body"))
    message = message_of(app)
    spans.clear()
    run(app, message)
    assert seen == [[]]
    assert any("UPDATE jobhandle_job" in span for span in spans)
    assert handle.job_status() is JobStatus.FINISHED


def test_span_of_a_body_has_job_id_and_attempt(app: Any, attributes: Callable[[], dict[str, Any]]) -> None:
    handle = app.jobs.handle()
    handle.submit(Job(task="tests.add", args=[1, 2]))
    message = message_of(app)
    assert attributes() == {}
    run(app, message)
    assert attributes() == {"jobhandle.job_id": handle.job_id, "jobhandle.attempt": 1}
