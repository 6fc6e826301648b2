"""A worker that cannot reach its database logs no password; test_database_setting has errors and reprs."""

from collections.abc import Callable
from typing import Any

import pytest
import redis

from jobhandle_celery import Job
from tests.support import eventually
from tests.workers import WorkerProcess

pytestmark = pytest.mark.faults

SECRET = "hunter2-is-no-secret"
NOWHERE = f"postgresql+psycopg://ann:{SECRET}@127.0.0.1:1/shop"


def test_worker_without_database_logs_no_password(
    start_worker: Callable[..., WorkerProcess],
    make_jobs_app: Callable[..., Any],
    sqlite_url: str,
    redis_url: str,
) -> None:
    # A job's message arrives from a client that reaches a database.
    client = make_jobs_app(sqlite_url, redis_url)
    client.jobs.submit(Job(task="tests.add", args=[1, 2], queue="celery"))
    worker = start_worker(
        database_url=NOWHERE, broker_url=redis_url, concurrency=1, arguments=["--loglevel=DEBUG"], ready=False
    )
    eventually(lambda: "did not answer" in worker.log or not worker.is_running())
    with redis.Redis.from_url(redis_url) as broker:
        eventually(lambda: not worker.is_running() or not broker.llen("celery"))
    assert "127.0.0.1" in worker.log
    assert SECRET not in worker.log
