"""OpenTelemetry's spans, in an application that uses it: this library does not import it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def untraced() -> Iterator[None]:
    """Suppress the spans of instrumented drivers in this context.

    A worker polls its database several times a second, also when it is idle. Outside of a request and of a
    body, each statement would be a trace of its own.
    """
    # An application that instruments a driver has imported this module.
    loaded: Any = sys.modules.get("opentelemetry.instrumentation.utils")
    suppress = getattr(loaded, "suppress_instrumentation", None)
    if suppress is None:
        yield
        return
    with suppress():
        yield


def describe_run(job_id: int, attempt: int) -> None:
    """Set the attributes of the current span, which is that of the task if Celery is instrumented."""
    loaded: Any = sys.modules.get("opentelemetry.trace")
    current = getattr(loaded, "get_current_span", None)
    if current is not None:
        current().set_attributes({"jobhandle.job_id": job_id, "jobhandle.attempt": attempt})
