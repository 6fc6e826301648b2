"""Two services share a queue by mistake: the one that drops the other's message logs it (fault 54)."""

import logging
from collections.abc import Callable
from typing import Any

import pytest

from jobhandle_celery import JobStatus
from jobhandle_celery.worker import claim
from tests.in_process import become_worker, message_of, run
from tests.job_factory import ADD


@pytest.fixture
def services(
    database_url: str, empty_sqlite_url: str, make_jobs_app: Callable[..., Any], monkeypatch: Any
) -> dict[str, Any]:
    """A service, and two that share its queue: one of another namespace, one of another database."""
    monkeypatch.setattr(claim, "_foreign_reported", {})
    ours = make_jobs_app(database_url)
    shared = {"task_default_queue": ours.conf.task_default_queue}
    elsewhere = make_jobs_app(empty_sqlite_url, **shared)
    elsewhere.jobs.upgrade_schema()
    become_worker(ours)
    namespace = make_jobs_app(database_url, jobhandle_namespace="theirs", **shared)
    return {"ours": ours, "namespace": namespace, "database": elsewhere}


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "jobhandle_celery.worker.claim" and record.levelno >= logging.WARNING
    ]


@pytest.mark.parametrize(
    ("whose", "where"), [("namespace", "of namespace theirs"), ("database", "of another database, or pruned")]
)
def test_foreign_message_is_logged_once(
    services: dict[str, Any], caplog: pytest.LogCaptureFixture, whose: str, where: str
) -> None:
    """A worker that drops another service's messages logs it once, with the remedy (fault 54)."""
    ours, theirs = services["ours"], services[whose]
    mine = ours.jobs.handle()
    mine.submit(ADD)  # of the same id as the first in another database
    run(ours, message_of(ours))
    handle = theirs.jobs.handle()
    for _ in range(3):
        handle.submit(ADD)
        run(ours, message_of(ours))
    [line] = errors(caplog)
    assert "is not in namespace default" in line
    assert f"it is {where}" in line
    assert "give each its own (task_default_queue)" in line
    # MariaDB may have locked the row for the other service's mark; then this one is left out.
    assert handle.job_status() in (JobStatus.SUBMITTED, JobStatus.QUEUED)
    assert mine.job_status() is JobStatus.FINISHED


def test_late_duplicates_of_own_messages_are_not_logged(
    services: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Duplicates, and messages from before a resubmit, are the service's own (fault 54)."""
    ours = services["ours"]
    handle = ours.jobs.handle()
    handle.submit(ADD)
    message = message_of(ours)
    run(ours, message)
    run(ours, message)
    handle.resubmit_job()
    run(ours, message)
    run(ours, message_of(ours))
    assert handle.job_status() is JobStatus.FINISHED
    assert errors(caplog) == []
