"""The app of a worker that Sentry and OpenTelemetry observe at once; what they would send is in a file."""

import json
import os
from collections.abc import Sequence
from typing import Any

import sentry_sdk
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from sentry_sdk.transport import Transport

from tests.worker.bodies import app

__all__ = ["app"]


def keep(kind: str, sent: Any) -> None:
    """Append a line to the file, in one write: several processes append."""
    line = json.dumps([kind, os.getpid(), sent], default=str) + "\n"
    descriptor = os.open(os.environ["OBSERVED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, line.encode())
    os.close(descriptor)


class SentryFile(Transport):  # type: ignore[misc]  # may not be installed
    def capture_envelope(self, envelope: Any) -> None:
        for item in envelope.items:
            keep(f"sentry {item.type}", item.payload.json)


class SpanFile(SpanExporter):  # type: ignore[misc]  # may not be installed
    def export(self, spans: Sequence[Any]) -> Any:
        for span in spans:
            keep(
                "span",
                {
                    "name": span.name,
                    "by": span.instrumentation_scope.name.rpartition(".")[2],
                    "trace": span.context.trace_id,
                    "id": span.context.span_id,
                    "parent": span.parent and span.parent.span_id,
                    "attributes": dict(span.attributes),
                },
            )
        return SpanExportResult.SUCCESS


sentry_sdk.init(dsn="http://key@localhost/1", transport=SentryFile(), traces_sample_rate=1.0)
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(SpanFile()))
for instrumentor in (CeleryInstrumentor(), PsycopgInstrumentor(), RedisInstrumentor()):
    instrumentor.instrument(tracer_provider=provider)
