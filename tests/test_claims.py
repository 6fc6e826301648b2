"""A claim that is not answered, or has no lease: what is logged, and that the body does not run."""

from collections.abc import Iterator
from typing import Any

import pytest

from jobhandle_celery import JobStatus
from jobhandle_celery.errors import DatabaseUnavailableError
from jobhandle_celery.runtime import runtime_of
from jobhandle_celery.worker import claim
from tests.apps import make_app
from tests.in_process import become_worker, message_of, run
from tests.job_factory import ADD

TRIES = 20
"""After 0, 0.1, 0.3, 0.7, 1.5, 3.1 s, then each 2 s until 30 s have passed."""


class Clock:
    """The time of a claim, which passes when it sleeps."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


@pytest.fixture
def app(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    app: Any = make_app("memory://", sqlite_url, {"task_default_queue": "claims"})
    become_worker(app)
    monkeypatch.setattr(claim, "time", Clock())
    yield app
    app.jobs.close()


def logged(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if part in record.getMessage()]


def test_outage_at_the_claim_is_logged_at_its_begin_and_end(
    app: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    handle = app.jobs.handle()
    handle.submit(ADD)
    calls: list[object] = []

    def away(*args: object) -> None:
        calls.append(args)
        raise DatabaseUnavailableError("away")

    monkeypatch.setattr(runtime_of(app).store.runs, "claim", away)
    run(app, message_of(app))
    assert len(calls) == TRIES
    assert len(logged(caplog, f"job {handle.job_id}: its claim waits for the database: away")) == 1
    assert len(logged(caplog, f"job {handle.job_id} was not started: the database did not answer")) == 1
    assert handle.job_status() is JobStatus.QUEUED


def test_claim_without_lease_is_logged_at_its_begin_and_end(
    app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    handle = app.jobs.handle()
    handle.submit(ADD)
    runtime = runtime_of(app)
    runtime.store.leases.retire(runtime.current_worker())
    run(app, message_of(app))
    assert len(logged(caplog, f"job {handle.job_id}: its claim waits until worker w1 has a lease")) == 1
    assert len(logged(caplog, f"job {handle.job_id} was not started: worker w1 had no lease")) == 1
    assert handle.job_status() is JobStatus.QUEUED
