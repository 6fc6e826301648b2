"""`celery.contrib.testing.worker.start_worker` and the fixtures of `celery.contrib.pytest` run jobs."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import chain

from jobhandle_celery import JobStatus, current_job
from tests.documentation import files, python, with_servers
from tests.embedded import embedded_worker
from tests.servers import execute
from tests.support import eventually

pytestmark = pytest.mark.ecosystem


def add(x: int, y: int) -> int:
    return x + y


def retry_once(self: Any) -> int:
    if self.request.retries == 0:
        raise self.retry(countdown=0)
    retries: int = self.request.retries
    return retries


def run_until_cancelled() -> None:
    job: Any = current_job()
    job.set_message("begun")
    eventually(job.cancel_requested)
    job.raise_if_cancelled()


@pytest.fixture
def app(redis_url: str, sqlite_url: str, make_jobs_app: Callable[..., Any]) -> Any:
    app = make_jobs_app(sqlite_url, redis_url)
    app.task(name="add", durable=True, shared=False)(add)
    app.task(name="retry_once", bind=True, shared=False)(retry_once)
    app.task(name="run_until_cancelled", shared=False)(run_until_cancelled)
    return app


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_start_worker_runs_jobs(app: Any, pool: str) -> None:
    waiting = app.tasks["add"].delay(0, 1)
    with embedded_worker(app, pool) as worker:
        assert waiting.get(timeout=60) == 1
        handle = app.jobs.handle()
        handle.submit(app.tasks["retry_once"].s())
        assert handle.result(timeout=60) == 1
        assert handle.get_job().worker == worker.hostname
        canvas: Any = chain(app.tasks["add"].s(1, 1), app.tasks["add"].s(2))
        assert canvas.delay().get(timeout=60) == 4
        handle.submit(app.tasks["run_until_cancelled"].s())
        eventually(lambda: handle.job_message() == "begun")
        assert handle.cancel_job() is JobStatus.RUNNING
        assert handle.wait(60) is JobStatus.CANCELLED


def test_start_worker_ends_its_lease(app: Any, sqlite_url: str) -> None:
    """Another worker of the same process then runs the jobs."""
    with embedded_worker(app, hostname="first@here"):
        assert app.tasks["add"].delay(1, 2).get(timeout=60) == 3
        assert execute(sqlite_url, "SELECT name FROM jobhandle_worker") == [("first@here",)]
    assert execute(sqlite_url, "SELECT name FROM jobhandle_worker") == []
    waiting = app.tasks["add"].delay(2, 2)
    with embedded_worker(app, hostname="second@here"):
        assert waiting.get(timeout=60) == 4
        assert app.jobs.find(limit=1)[0].worker == "second@here"


@pytest.mark.timeout(600)  # of two suites with workers, in a process of their own
def test_testing_guide_passes_with_workers(tmp_path: Path) -> None:
    """`start_worker` and the fixtures of `celery.contrib.pytest`, as the guide shows them."""
    shown = files("docs/how-to/testing-with-a-worker.md")
    tests = ["test_shop_with_worker.py", "test_with_worker.py"]
    for name in tests:
        (tmp_path / name).write_text(shown[name])
    (tmp_path / "shop.py").write_text(with_servers(files("README.md")["shop.py"], None, "memory://"))
    options = ("-q", "-p", "no:xdist", "-p", "no:celery", "-c", os.devnull)
    assert "2 passed" in python("-m", "pytest", *options, *tests, folder=tmp_path)
