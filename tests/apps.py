"""The Celery app of the tests: ordinary tasks, at a speed for tests.

A worker process (see `tests.workers`) finds its broker, database and further settings in the
environment; a test in this process gets its own app with the same tasks from `make_app`.

`JOBHANDLE_TEST_SETTINGS` is a JSON object of Celery settings that go over `SPEED`, say
`{"jobhandle_lease": 3, "broker_transport_options": {"visibility_timeout": 2}}`.
"""

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from celery import Celery, Task

from jobhandle_celery import Jobs, current_job

SPEED: dict[str, Any] = {
    # A test that takes a lease in its own process does not renew it: it must last as long as the test.
    "jobhandle_lease": 3600,
    "jobhandle_sweep_interval": 0.2,
    "jobhandle_republish_after": 3,
    "jobhandle_publish_grace": 1,
    # A worker that reserves more messages than it runs keeps them from the other workers of a test.
    "worker_prefetch_multiplier": 1,
    "broker_connection_retry_on_startup": True,
}
WORKERS_LEASE = {"jobhandle_lease": 6}
"""Worker processes renew theirs. It is short, for a test that kills one waits for its end."""


def add(x: int, y: int) -> int:
    return x + y


def append_line(path: str, text: str) -> str:
    """Append `text pid unix-time` to the file, by which tests count bodies.

    In one write, so that the lines of many processes do not mix.
    """
    line = f"{text} {os.getpid()} {time.time():.6f}\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
    return line


def append_then_sleep(path: str, text: str, seconds: float) -> str:
    """Append a line, then run for `seconds`, without checks for a stop request."""
    line = append_line(path, text)
    time.sleep(seconds)
    return line


def sleep_for(seconds: float) -> float:
    """Run for `seconds`, and stop when the job is cancelled."""
    job = current_job()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if job is not None:
            job.raise_if_cancelled()
        time.sleep(0.05)
    return seconds


def deaf_sleep(seconds: float) -> float:
    """Run for `seconds`, without checks for a stop request."""
    time.sleep(seconds)
    return seconds


def fail(message: str) -> None:
    raise ValueError(message)


def retry_times(self: "Task[..., Any]", path: str, times: int, countdown: float) -> int:
    """Append a line, retry `times` times, then return the number of retries."""
    append_line(path, str(self.request.retries))
    if self.request.retries < times:
        raise self.retry(countdown=countdown, max_retries=times)
    return self.request.retries


def kill_me() -> None:
    """Die as by the kernel's OOM killer."""
    os.kill(os.getpid(), signal.SIGKILL)


def big_result(n_bytes: int) -> str:
    return "x" * n_bytes


def unserialisable_result() -> object:
    return object()


def make_app(broker_url: str, database_url: str | None, settings: Mapping[str, Any] | None = None) -> Celery:
    """Make an app with the tasks of this module, named `tests.add` and so on.

    Given a database URL, it has a `Jobs`, found as `app.jobs`.
    """
    app = Celery("tests", broker=broker_url, set_as_current=False)
    app.conf.update({**SPEED, **(settings or {})})
    for body in (
        add,
        append_line,
        append_then_sleep,
        sleep_for,
        deaf_sleep,
        fail,
        kill_me,
        big_result,
        unserialisable_result,
    ):
        app.task(name=f"tests.{body.__name__}")(body)
    app.task(name="tests.retry_times", bind=True)(retry_times)
    if database_url is not None:
        Jobs(app, database_url)
    return app


def lines_of(path: Path) -> list[str]:
    """Return the texts that `append_line` has written to the file, in order."""
    return [line.rsplit(maxsplit=2)[0] for line in path.read_text().splitlines()] if path.exists() else []


app = make_app(
    os.environ.get("JOBHANDLE_TEST_BROKER_URL", "memory://"),
    os.environ.get("JOBHANDLE_TEST_DATABASE_URL"),
    WORKERS_LEASE | json.loads(os.environ.get("JOBHANDLE_TEST_SETTINGS", "{}")),
)
