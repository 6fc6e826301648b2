"""A worker's polling makes no traces with an instrumented driver (fault 33)."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import event

from tests.store.harness import Harness


class Tracing(ModuleType):
    """A stand-in for OpenTelemetry's module, and the statements that would become spans."""

    def __init__(self) -> None:
        super().__init__("opentelemetry.instrumentation.utils")
        self.suppressed = False
        self.spans: list[str] = []

    @contextmanager
    def suppress_instrumentation(self) -> Iterator[None]:
        self.suppressed = True
        yield
        self.suppressed = False

    def note(self, _c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not self.suppressed:
            self.spans.append(statement)


@pytest.fixture
def tracing(own_harness: Harness, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tracing]:
    tracing = Tracing()
    monkeypatch.setitem(sys.modules, tracing.__name__, tracing)
    event.listen(own_harness.database.engine, "before_cursor_execute", tracing.note)
    yield tracing
    event.remove(own_harness.database.engine, "before_cursor_execute", tracing.note)


def test_idle_worker_makes_no_traces(own_harness: Harness, tracing: Tracing) -> None:
    harness, store = own_harness, own_harness.store
    me = harness.worker()
    store.sweep.begin_pass()
    store.leases.lapsed_workers()
    store.sweep.first_due()
    store.sweep.expire()
    store.sweep.unreported_cancels(10)
    store.outbox.reserve_due(10)
    store.leases.runs(str(me.worker_uid))
    store.queries.statuses([1])
    store.queries.states([1])
    assert tracing.spans == []


def test_users_operation_is_traced(own_harness: Harness, tracing: Tracing) -> None:
    job_id = own_harness.submit()
    submitted = len(tracing.spans)
    assert submitted
    assert own_harness.store.queries.status(job_id) is not None
    assert len(tracing.spans) == submitted + 1
