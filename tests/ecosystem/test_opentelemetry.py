"""OpenTelemetry's instrumentation of Celery, SQLAlchemy, psycopg and redis."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from jobhandle_celery import Job
from tests.ecosystem.service import Service
from tests.ecosystem.ways import WAYS, Way, submit

pytestmark = pytest.mark.ecosystem

JOB_ID, ATTEMPT = "jobhandle.job_id", "jobhandle.attempt"


class Traces:
    """The spans that have ended, and a tracer for the requests."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("tests")

    def __call__(self, name: str = "", *, by: str = "") -> list[Any]:
        """Return the spans whose name begins so, and that an instrumentation has made, in their order."""
        spans = sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time)
        return [s for s in spans if s.name.startswith(name) and s.instrumentation_scope.name.endswith(by)]

    def clear(self) -> None:
        self._exporter.clear()

    def request(self, service: Service, handler: Callable[[], Any]) -> Any:
        """Call a function within a span, as an instrumented web framework does."""

        def handled() -> Any:
            with self.tracer.start_as_current_span("request"):
                return handler()

        return service.request(handled)


@pytest.fixture
def instrument() -> Iterator[Callable[..., Traces]]:
    used = []

    def instrument(*instrumentors: Any, **options: Any) -> Traces:
        traces = Traces()
        for instrumentor in (CeleryInstrumentor(), *instrumentors):
            instrumentor.instrument(tracer_provider=traces.provider, **options)
            used.append(instrumentor)
        return traces

    yield instrument
    for instrumentor in used:
        instrumentor.uninstrument()


def parent_of(span: Any) -> int | None:
    return None if span.parent is None else span.parent.span_id


def id_of(span: Any) -> int:
    return int(span.context.span_id)


@pytest.mark.parametrize("how", WAYS)
def test_every_run_of_a_job_is_in_the_trace_of_its_request(
    service: Service, instrument: Callable[..., Traces], how: Way
) -> None:
    """Each retries a day later, and the message of the retry is lost."""
    traces = instrument()
    job_ids = traces.request(service, lambda: how(service, "retry_tomorrow"))
    service.finish(job_ids)
    (request,) = traces("request")
    producers = {
        span.attributes["messaging.message.id"]: span for span in traces("apply_async/")[: len(job_ids)]
    }
    assert {parent_of(span) for span in producers.values()} == {id_of(request)}
    runs = traces("run/")
    assert {span.context.trace_id for span in runs} == {request.context.trace_id}
    assert sorted(
        (span.attributes[JOB_ID], span.attributes[ATTEMPT], parent_of(span)) for span in runs
    ) == sorted(
        (job_id, attempt, id_of(producers[service.job(job_id).task_id]))
        for job_id in job_ids
        for attempt in (1, 2)
    )


def test_run_is_linked_to_its_submit_with_span_links(
    service: Service, instrument: Callable[..., Traces]
) -> None:
    """`use_span_links`: each run is a trace of its own, also that of a retry a day later."""
    traces = instrument(use_span_links=True)
    traces.request(service, lambda: submit(service, "retry_tomorrow"))
    service.work()
    service.publish_tomorrow()
    service.work()
    first, second = traces("run/")
    assert (first.parent, second.parent) == (None, None)
    producer = traces("apply_async/")[0]
    assert [link.context.span_id for run in (first, second) for link in run.links] == [id_of(producer)] * 2


def test_error_of_a_body_is_in_its_span_once(service: Service, instrument: Callable[..., Traces]) -> None:
    traces = instrument()
    submit(service, "fail")
    service.work()
    (span,) = traces("run/")
    assert [event.attributes["exception.message"] for event in span.events] == ["no good"]
    assert not span.status.is_ok


Make = Callable[..., Service]


def test_statements_are_in_the_trace_of_the_request_or_of_the_run(
    instrument: Callable[..., Traces], make_service: Make, postgresql_url: str, redis_url: str
) -> None:
    """A batch of messages is one LPUSH: the fast transport is used."""
    traces = instrument(PsycopgInstrumentor(), RedisInstrumentor())
    service = make_service(postgresql_url, redis_url)
    traces.request(service, lambda: submit(service, "fail"))  # opens the connections, declares the queue
    service.lose_messages()
    traces.clear()
    traces.request(service, lambda: service.jobs.submit_many([Job(task="fail")] * 20))
    (request,) = traces("request")
    (pushed,) = traces("LPUSH", by="redis")
    assert pushed.attributes["db.redis.args_length"] == 22
    assert parent_of(pushed) == id_of(request)
    assert {parent_of(span) for span in traces(by="psycopg")} == {id_of(request)}
    traces.clear()
    service.work()
    runs = traces("run/")
    assert len(runs) == 20
    outcomes = traces(by="psycopg")
    assert len(outcomes) == 20
    assert {parent_of(span) for span in outcomes} == {id_of(span) for span in runs}


def test_engine_instrumented_for_sqlalchemy_shows_every_statement(
    instrument: Callable[..., Traces], make_service: Make, postgresql_url: str
) -> None:
    """The execution without SQLAlchemy, which its instrumentation would not see, is not used then."""
    service = make_service(postgresql_url)
    engine = service.jobs._runtime.store.database.engine
    traces = instrument()
    # It is declared for SQLAlchemy before 2.1.
    SQLAlchemyInstrumentor().instrument(engine=engine, tracer_provider=traces.provider, skip_dep_check=True)
    try:
        traces.request(service, lambda: submit(service, "fail"))
        service.work()
    finally:
        SQLAlchemyInstrumentor().uninstrument()
    (request,), (run,) = traces("request"), traces("run/")
    assert {parent_of(span) for span in traces(by="sqlalchemy")} == {id_of(request), id_of(run)}
