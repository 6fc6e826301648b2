"""Datadog's instrumentation of Celery, psycopg and redis."""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest

from jobhandle_celery import Job
from tests.ecosystem.page import run_block
from tests.ecosystem.service import Service
from tests.ecosystem.ways import submit_many

pytestmark = pytest.mark.ecosystem


class Traces:
    """The spans that have ended; none is sent."""

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer
        self._traces: list[list[Any]] = []

    def process_trace(self, trace: list[Any]) -> None:
        self._traces.append(trace)

    def __call__(self, name: str, resource: str = "") -> list[Any]:
        spans = [span for trace in self._traces for span in trace if span.name == name]
        return [span for span in spans if span.resource.startswith(resource)]

    def roots(self) -> set[str]:
        """Return the names of the spans that are first in their process."""
        return {trace[0].name for trace in self._traces}

    def clear(self) -> None:
        self._traces.clear()

    def filter(self, other: Any) -> None:
        """Keep only what another filter does not drop."""
        self._tracer.configure(trace_processors=[other, self])

    def request(self, service: Service, handler: Callable[[], Any]) -> Any:
        """Call a function within a span, as an instrumented web framework does."""

        def handled() -> Any:
            with self._tracer.trace("request"):
                return handler()

        return service.request(handled)


@pytest.fixture
def instrument(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Traces]]:
    for setting in ("DD_INSTRUMENTATION_TELEMETRY_ENABLED", "DD_REMOTE_CONFIGURATION_ENABLED"):
        monkeypatch.setenv(setting, "false")
    import ddtrace  # reads the environment
    from ddtrace.trace import TraceFilter, tracer

    patched: list[str] = []

    class Kept(Traces, TraceFilter):  # type: ignore[misc]  # may not be installed
        pass

    def instrument(*libraries: str) -> Traces:
        traces = Kept(tracer)
        tracer.configure(trace_processors=[traces])
        ddtrace.patch(raise_errors=True, **dict.fromkeys(libraries, True))
        monkeypatch.setitem(ddtrace.config.celery, "distributed_tracing", True)  # not by default
        patched.extend(libraries)
        return traces

    yield instrument
    for library in patched:
        import_module(f"ddtrace.contrib.internal.{library}.patch").unpatch()


def test_every_run_of_a_job_is_in_the_trace_of_its_request(
    instrument: Callable[..., Traces], service: Service
) -> None:
    """Each retries a day later, and the message of the retry is lost."""
    traces = instrument("celery")
    job_ids = traces.request(service, lambda: submit_many(service, "retry_tomorrow"))
    service.finish(job_ids)
    (request,), runs = traces("request"), traces("celery.run")
    assert {run.trace_id for run in runs} == {request.trace_id}
    submits = {span.span_id: span for span in traces("celery.apply") if span.parent_id == request.span_id}
    assert len(submits) == 2
    assert sorted(run.parent_id for run in runs) == sorted([*submits, *submits])


def test_error_of_a_body_is_in_its_span(instrument: Callable[..., Traces], service: Service) -> None:
    traces = instrument("celery")
    service.request(lambda: service.jobs.submit(Job(task="fail")))
    service.work()
    (run,) = traces("celery.run")
    assert (run.error, run.get_tag("error.message"), run.get_tag("celery.state")) == (1, "no good", "FAILURE")


@pytest.mark.parametrize("kombu", [False, True])
def test_statements_are_in_the_trace_of_the_request_or_of_the_run(
    instrument: Callable[..., Traces],
    make_service: Callable[..., Service],
    postgresql_url: str,
    redis_url: str,
    kombu: bool,
) -> None:
    """A batch of messages is one LPUSH, by the fast transport, unless kombu is instrumented as well."""
    traces = instrument("celery", "psycopg", "redis", *["kombu"] * kombu)
    service = make_service(postgresql_url, redis_url)
    traces.request(service, lambda: service.jobs.submit(Job(task="fail")))
    service.lose_messages()
    traces.clear()
    traces.request(service, lambda: service.jobs.submit_many([Job(task="fail")] * 3))
    (request,) = traces("request")
    statements = {span.parent_id for span in traces("postgres.query")}
    assert statements - {None} == {request.span_id}  # None: of the library's own threads
    (pushed,) = traces("redis.command", "LPUSH")
    assert pushed.parent_id == request.span_id
    published = [span for span in traces("kombu.publish") if span.parent_id == request.span_id]
    assert len(published) == 3 * kombu
    traces.clear()
    service.work()
    runs = {run.span_id for run in traces("celery.run")}
    outcomes = [span for span in traces("postgres.query") if span.parent_id in runs]
    assert len(outcomes) == len(runs) == 3


def test_filter_drops_what_a_worker_does_outside_of_bodies(
    instrument: Callable[..., Traces],
    make_service: Callable[..., Service],
    postgresql_url: str,
    redis_url: str,
) -> None:
    traces = instrument("celery", "psycopg", "redis")
    service = make_service(postgresql_url, redis_url)
    service.jobs.submit(Job(task="retry_tomorrow"))
    service.work()
    assert traces.roots() > {"celery.run"}
    traces.filter(run_block("TraceFilter")["NoStatementsAlone"]())
    traces.clear()
    service.publish_tomorrow()
    service.work()
    assert traces.roots() == {"celery.run"}
