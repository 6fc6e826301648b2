"""structlog 26.1: what a service binds in the request, and before each task, is in the log of the body."""

from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from celery import signals

from jobhandle_celery import Job, current_job
from tests.ecosystem.service import Service

pytestmark = pytest.mark.ecosystem

Lines = list[dict[str, Any]]


def bind(task_id: str, task: Any, **_: Any) -> None:
    """As in structlog's documentation, and the job's id."""
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(task_id=task_id, **(task.request.get("log_context") or {}))
    if (job := current_job()) is not None:
        structlog.contextvars.bind_contextvars(job_id=job.job_id, attempt=job.get_job().attempt)


def carry(headers: dict[str, Any], **_: Any) -> None:
    """As django-structlog."""
    headers["log_context"] = structlog.contextvars.get_contextvars()


@pytest.fixture
def lines() -> Iterator[Lines]:
    signals.task_prerun.connect(bind)
    signals.before_task_publish.connect(carry)
    lines: Lines = []

    def keep(logger: Any, method: str, line: Any) -> str:
        lines.append(dict(line))
        raise structlog.DropEvent

    structlog.configure(processors=[structlog.contextvars.merge_contextvars, keep])
    yield lines
    structlog.reset_defaults()
    signals.before_task_publish.disconnect(carry)
    signals.task_prerun.disconnect(bind)


def test_context_of_request_and_job_is_in_lines_of_every_run(service: Service, lines: Lines) -> None:
    def body(self: Any) -> None:
        structlog.get_logger().info("in the body")
        if self.request.retries == 0:
            raise self.retry(countdown=24 * 3600)

    service.task(body, bind=True)

    def handler() -> int:
        structlog.contextvars.bind_contextvars(request_id="r1")
        return int(service.jobs.submit(Job(task="body")))

    job_id = service.request(handler)
    service.work()
    service.publish_tomorrow()
    service.work()
    job = service.jobs.attach(job_id).get_job()
    common = {"event": "in the body", "request_id": "r1", "task_id": job.task_id, "job_id": job_id}
    assert lines == [{**common, "attempt": 1}, {**common, "attempt": 2}]


def test_plain_task_has_no_job_in_its_context(service: Service, lines: Lines) -> None:
    def body() -> None:
        structlog.get_logger().info("in the body")

    task_id = service.request(service.task(body).delay).id
    service.work()
    assert lines == [{"event": "in the body", "task_id": task_id}]
