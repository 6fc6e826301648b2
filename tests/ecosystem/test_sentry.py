"""Sentry's integration of Celery: errors, traces from a web request on, and cron monitors."""

from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Any

import billiard.pool
import celery.app.trace
import kombu
import pytest
import sentry_sdk
from celery import Celery, Task, signals
from celery.beat import Scheduler
from celery.exceptions import Ignore
from celery.schedules import crontab
from fastapi import FastAPI
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.integrations.fastapi import FastApiIntegration
from sentry_sdk.integrations.starlette import StarletteIntegration
from sentry_sdk.transport import Transport
from starlette.testclient import TestClient

from jobhandle_celery import Job, StopRequested
from tests.ecosystem.page import run_block
from tests.ecosystem.service import Service
from tests.ecosystem.ways import WAYS, Way

pytestmark = pytest.mark.ecosystem

PATCHED: list[tuple[Any, str]] = [
    (Task, "apply_async"),
    (Celery, "send_task"),
    (celery.app.trace, "build_tracer"),
    (kombu.Producer, "publish"),
    (billiard.pool.Worker, "workloop"),
    (Scheduler, "apply_entry"),
]


class Sent(Transport):  # type: ignore[misc]  # may not be installed
    """What would have been sent."""

    def __init__(self) -> None:
        super().__init__()
        self._items: list[tuple[str, Any]] = []

    def capture_envelope(self, envelope: Any) -> None:
        self._items += [(item.type, item.payload.json) for item in envelope.items]

    def __call__(self, kind: str) -> list[Any]:
        return [payload for of, payload in self._items if of == kind]

    def transactions(self, operation: str) -> list[Any]:
        return [sent for sent in self("transaction") if sent["contexts"]["trace"]["op"] == operation]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sent]:
    for owner, name in PATCHED:
        monkeypatch.setattr(owner, name, getattr(owner, name))  # to be undone
    before = Task.apply_async
    sent = Sent()
    sentry_sdk.init(
        dsn="http://key@localhost/1",
        transport=sent,
        traces_sample_rate=1.0,
        auto_enabling_integrations=False,
        integrations=[
            CeleryIntegration(monitor_beat_tasks=True),
            StarletteIntegration(),
            FastApiIntegration(),
        ],
    )
    if Task.apply_async is before:
        CeleryIntegration.setup_once()  # Sentry patches once in a process
    yield sent
    sentry_sdk.init()


def spans(transaction: Any, operation: str) -> dict[str, Any]:
    """Return the spans of an operation, by their ids."""
    return {span["span_id"]: span for span in transaction["spans"] if span["op"] == operation}


@pytest.mark.parametrize("how", WAYS)
def test_every_run_of_a_job_is_in_the_trace_of_its_request(service: Service, sent: Sent, how: Way) -> None:
    """Each retries a day later, and the message of the retry is lost."""
    web = FastAPI()

    @web.get("/")
    def handler() -> list[int]:
        return how(service, "retry_tomorrow")

    with TestClient(web) as client:
        job_ids: list[int] = client.get("/").json()
    service.finish(job_ids)
    (request,) = sent.transactions("http.server")
    runs = [run["contexts"]["trace"] for run in sent.transactions("queue.task.celery")]
    assert len(runs) == 2 * len(job_ids)
    assert {run["trace_id"] for run in runs} == {request["contexts"]["trace"]["trace_id"]}
    submits = spans(request, "queue.submit.celery")
    assert {submits[run["parent_span_id"]]["description"] for run in runs} == {"retry_tomorrow"}


def test_failed_body_is_one_event_in_the_trace_of_its_run(service: Service, sent: Sent) -> None:
    receiver = run_block("sentry_sdk")["tag_job"]
    job_id = service.request(lambda: service.jobs.submit(Job(task="fail")))
    service.work()
    signals.task_prerun.disconnect(receiver)
    (event,) = sent("event")
    assert event["tags"]["job_id"] == job_id
    (run,) = sent.transactions("queue.task.celery")
    assert event["exception"]["values"][-1]["value"] == "no good"
    assert event["tags"]["celery_task_id"] == service.job(job_id).task_id
    assert event["contexts"]["trace"]["trace_id"] == run["contexts"]["trace"]["trace_id"]
    assert run["contexts"]["trace"]["status"] == "internal_error"


def test_job_that_fails_after_its_last_retry_is_one_event(service: Service, sent: Sent) -> None:
    def fails_twice(self: Any) -> None:
        raise self.retry(exc=ValueError("no good"), countdown=60, max_retries=1)

    service.task(fails_twice, bind=True)
    service.request(lambda: service.jobs.submit(Job(task="fails_twice")))
    service.work()
    assert sent("event") == []
    service.publish_tomorrow()
    service.work()
    assert [event["exception"]["values"][-1]["value"] for event in sent("event")] == ["no good"]


@pytest.mark.parametrize("ending", [StopRequested("enough"), Ignore()])
def test_stopped_and_ignored_bodies_are_no_events(
    service: Service, sent: Sent, ending: BaseException
) -> None:
    def ends() -> None:
        raise ending

    service.task(ends)
    service.request(lambda: service.jobs.submit(Job(task="ends")))
    service.work()
    assert sent("event") == []
    assert len(sent.transactions("queue.task.celery")) == 1


def test_job_that_does_not_start_is_neither_transaction_nor_event(service: Service, sent: Sent) -> None:
    job_id = service.request(lambda: service.jobs.submit(Job(task="fail")))
    service.jobs.attach(job_id).cancel_job()
    service.work()
    assert sent("event") == sent("transaction") == []


@pytest.mark.parametrize(
    ("task", "checks"),
    [
        ("nightly", ["in_progress", "ok"]),
        ("fail", ["in_progress", "error"]),
        ("retry_tomorrow", ["in_progress", "error", "ok"]),  # as of a plain task
    ],
)
def test_cron_monitor_follows_the_job_of_a_beat_entry(
    service: Service, sent: Sent, task: str, checks: list[str]
) -> None:
    service.task(nightly)
    service.app.tasks[task].durable = True
    service.app.conf.beat_schedule = {"at night": {"task": task, "schedule": crontab(hour=3)}}
    beat = Scheduler(service.app)
    Context().run(beat.apply_entry, beat.schedule["at night"])
    service.work()
    if task == "retry_tomorrow":
        service.publish_tomorrow()
        service.work()
    (job,) = service.jobs.find()
    assert job.status.final
    found = sent("check_in")
    assert [check["status"] for check in found] == checks
    assert {check["monitor_slug"] for check in found} == {"at night"}
    assert len({check["check_in_id"] for check in found}) == 1


def nightly() -> None:
    pass


def test_publish_of_each_message_is_a_span(
    sent: Sent, sqlite_url: str, redis_url: str, make_service: Callable[..., Service]
) -> None:
    """Sentry patches `kombu.Producer.publish`; so kombu publishes, not the transport by LPUSH."""
    service = make_service(sqlite_url, redis_url)

    def handler() -> None:
        with sentry_sdk.start_transaction(op="http.server", name="request"):
            service.jobs.submit_many([Job(task="fail")] * 3)

    for _ in range(2):  # the queue is declared with the first
        service.request(handler)
    for request in sent.transactions("http.server"):
        published = spans(request, "queue.publish").values()
        assert len(published) == 3
        assert {span["data"]["messaging.destination.name"] for span in published} == {
            service.app.conf.task_default_queue
        }
