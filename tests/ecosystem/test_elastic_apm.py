"""Elastic APM's instrumentation of Celery, psycopg and redis."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import elasticapm
import pytest
from elasticapm.contrib.celery import register_exception_tracking, register_instrumentation
from elasticapm.transport.base import Transport

from jobhandle_celery import Job
from tests.ecosystem.service import Service
from tests.ecosystem.ways import submit_many

pytestmark = pytest.mark.ecosystem


class Kept(Transport):  # type: ignore[misc]  # may not be installed
    """A transport that keeps what it is given."""

    items: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def queue(self, kind: str, data: dict[str, Any], flush: bool = False) -> None:
        self.items.append((kind, data))

    def start_thread(self, pid: int | None = None) -> None:
        """Start none."""

    @classmethod
    def of(cls, kind: str, **fields: str) -> list[Any]:
        return [data for of, data in cls.items if of == kind and fields.items() <= data.items()]


@pytest.fixture
def client() -> Iterator[Any]:
    Kept.items.clear()
    client = elasticapm.Client(
        service_name="tests",
        transport_class=f"{__name__}.Kept",
        metrics_interval="0ms",
        cloud_provider="none",
        central_config=False,
    )
    elasticapm.instrument()
    register_exception_tracking(client)
    register_instrumentation(client)
    yield client
    elasticapm.uninstrument()
    client.close()


def requested(service: Service, client: Any, handler: Callable[[], Any]) -> Any:
    """Call a function as an instrumented web framework does."""

    def handled() -> Any:
        client.begin_transaction("request")
        returned = handler()
        client.end_transaction("GET /", "HTTP 2xx")
        return returned

    return service.request(handled)


def test_every_run_of_a_job_is_in_the_trace_of_its_request(client: Any, service: Service) -> None:
    """Each retries a day later, and the message of the retry is lost."""
    job_ids = requested(service, client, lambda: submit_many(service, "retry_tomorrow"))
    service.finish(job_ids)
    (request,) = Kept.of("transaction", type="request")
    runs = Kept.of("transaction", type="celery")
    assert [run["result"] for run in runs] == ["RETRY", "RETRY", "SUCCESS", "SUCCESS"]
    assert {(run["trace_id"], run["parent_id"]) for run in runs} == {(request["trace_id"], request["id"])}


def test_failed_body_is_one_error_in_its_run(client: Any, service: Service) -> None:
    service.request(lambda: service.jobs.submit(Job(task="fail")))
    service.work()
    (error,) = Kept.of("error")
    (run,) = Kept.of("transaction")
    assert error["exception"]["message"] == "ValueError: no good"
    assert error["parent_id"] == run["id"]
    assert run["outcome"] == "failure"


def test_statements_are_in_the_trace_of_the_request_or_of_the_run(
    client: Any, make_service: Callable[..., Service], postgresql_url: str, redis_url: str
) -> None:
    """A batch of messages is one LPUSH: the fast transport is used."""
    service = make_service(postgresql_url, redis_url)
    service.request(lambda: service.jobs.submit(Job(task="fail")))  # the queue is declared with the first
    service.lose_messages()
    Kept.items.clear()
    requested(service, client, lambda: service.jobs.submit_many([Job(task="fail")] * 3))
    (request,) = Kept.of("transaction")
    assert [span["parent_id"] for span in Kept.of("span", name="LPUSH")] == [request["id"]]
    assert {span["parent_id"] for span in Kept.of("span", subtype="postgresql")} == {request["id"]}
    Kept.items.clear()
    service.work()
    runs = [run["id"] for run in Kept.of("transaction")]
    assert sorted(span["parent_id"] for span in Kept.of("span", subtype="postgresql")) == sorted(runs)
    assert len(runs) == 3
