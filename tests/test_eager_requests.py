"""An eager job's request equals that in a worker, and its log is true (fault 18)."""

import logging
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from jobhandle_celery import Job, JobStatus
from tests.apps import make_app

NO_GOOD = Job(task="tests.fail", args=["no good"])
ADD = Job(task="tests.add", args=[1, 2])


@pytest.fixture
def make(sqlite_url: str) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def make(**settings: Any) -> Any:
        queue = f"queue-{uuid.uuid4().hex}"
        eager = {"task_always_eager": True, "task_default_queue": queue, **settings}
        made.append(make_app("memory://", sqlite_url, eager))
        return made[-1]

    yield make
    for app in made:
        app.jobs.close()


def test_eager_request_has_headers_priority_and_route(make: Callable[..., Any]) -> None:
    app, seen = make(), dict[str, Any]()

    @app.task(name="looks", bind=True, shared=False)  # type: ignore[untyped-decorator]  # Celery's
    def looks(self: Any) -> None:
        request = self.request
        seen.update(
            headers=request.headers["tenant"],
            attribute=request.tenant,
            ignored=request.ignore_result,
            stamps=request.stamps,
            priority=request.delivery_info["priority"],
            routing_key=request.delivery_info["routing_key"],
        )

    given = {"headers": {"tenant": "acme"}, "ignore_result": True, "priority": 4, "queue": "q"}
    app.jobs.handle().submit(looks.s().set(**given, stamped_headers=["batch"], batch="monday"))
    assert seen == {
        "headers": "acme",
        "attribute": "acme",
        "ignored": True,
        "stamps": {"batch": ["monday"]},
        "priority": 4,
        "routing_key": "q",
    }


def test_eager_retry_keeps_headers_of_the_submit(make: Callable[..., Any]) -> None:
    app, seen = make(), []

    @app.task(name="retries", bind=True, shared=False)  # type: ignore[untyped-decorator]  # Celery's
    def retries(self: Any) -> None:
        seen.append(self.request.tenant)
        if not self.request.retries:
            self.retry(countdown=5)

    handle = app.jobs.handle()
    headers = {"tenant": "acme"}
    for given in (retries.s().set(headers=headers), Job(task="retries", headers=headers)):
        handle.submit(given)
        assert (seen, handle.job_status()) == (["acme", "acme"], JobStatus.FINISHED)
        assert handle.get_job().headers == headers
        seen.clear()


def test_eager_jobs_all_run_before_first_error_is_raised(make: Callable[..., Any]) -> None:
    app = make(task_eager_propagates=True)
    with pytest.raises(ValueError, match="no good"):
        app.jobs.submit_many([ADD, NO_GOOD, ADD])
    counts = app.jobs.count_by_status()
    assert (counts[JobStatus.FINISHED], counts[JobStatus.ERROR]) == (2, 1)


def test_log_reports_eager_failure_after_commit(
    make: Callable[..., Any], sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = make(task_eager_propagates=True)
    engine = create_engine(sqlite_url)
    with Session(engine) as session, caplog.at_level(logging.INFO, "jobhandle_celery"):
        app.jobs.submit_many([NO_GOOD, ADD], session=session)
        session.commit()
    engine.dispose()
    assert "ran eagerly after the commit, and a body failed" in caplog.text
    assert "not sent" not in caplog.text
    counts = app.jobs.count_by_status()
    assert (counts[JobStatus.FINISHED], counts[JobStatus.ERROR]) == (1, 1)
