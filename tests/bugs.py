"""Bugs injected into the library's code, and their log messages."""

import logging
from typing import Any

import pytest

from jobhandle_celery import Job


def bug(*_: Any, **__: Any) -> Any:
    """Fail in the place of a function of this library."""
    raise TypeError("a bug")


def logged_bugs(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if "internal error" in record.getMessage()]


def blames_the_broker(caplog: pytest.LogCaptureFixture) -> bool:
    messages = [record.getMessage() for record in caplog.records]
    return any("not reached" in message or "the broker rejected" in message for message in messages)


def submit_three_times(app: Any) -> int:
    """Submit one job, many, and many again, after their queue was declared; return their number."""
    job = Job(task="tests.add", args=[1, 2])
    app.jobs.handle().submit(job)
    app.jobs.submit_many([job] * 3)
    app.jobs.submit_many([job] * 3)
    return 7
