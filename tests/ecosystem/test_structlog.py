"""structlog: what a service binds in the request, and before each task, is in the lines of the body."""

from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from celery import signals

from jobhandle_celery import Job
from tests.ecosystem.page import run_block
from tests.ecosystem.service import Service

pytestmark = pytest.mark.ecosystem

Lines = list[dict[str, Any]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    receivers = run_block("structlog")
    lines: Lines = []

    def keep(logger: Any, method: str, line: Any) -> str:
        lines.append(dict(line))
        raise structlog.DropEvent

    structlog.configure(processors=[structlog.contextvars.merge_contextvars, keep])
    yield lines
    structlog.reset_defaults()
    signals.before_task_publish.disconnect(receivers["carry_context"])
    signals.task_prerun.disconnect(receivers["bind_context"])


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
    task_id = service.job(job_id).task_id
    line = {"event": "in the body", "request_id": "r1", "task_id": task_id, "job_id": job_id}
    assert lines == [line, line]


def test_plain_task_has_no_job_in_its_context(service: Service, lines: Lines) -> None:
    def body() -> None:
        structlog.get_logger().info("in the body")

    task_id = service.request(service.task(body).delay).id
    service.work()
    assert lines == [{"event": "in the body", "task_id": task_id}]
