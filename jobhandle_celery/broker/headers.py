"""Identifies a message as that of a job, by a header and a content type of its own.

The content type keeps a worker without `Jobs` from running a job unclaimed: its consumer rejects types that
``accept_content`` does not list, and kombu has no decoder for it. A worker with `Jobs` replaces it by the
type that Celery knows once the message has passed the checks before the claim (see message_guard).
"""

from collections.abc import Sequence
from typing import Any

HEADER = "jobhandle"
"""The header that identifies a job: ``{"id": 42, "attempt": 1}``.

``"sensitive"`` lists arguments that are masked where they are displayed; ``"again"`` is true if a message for
this attempt was published before, and was not claimed.
"""

CONTENT_TYPE = "application/vnd.jobhandle+json"
"""The content type of a job's message."""
SIGNED_CONTENT_TYPE = "application/vnd.jobhandle-signed"
"""The same, for a message that Celery's ``auth`` serializer has signed."""

PLAIN_CONTENT_TYPES = {
    CONTENT_TYPE: "application/json",
    SIGNED_CONTENT_TYPE: "application/data",
    # Messages of versions before 0.2, and of their workers' sweep in a rolling upgrade.
    "application/json": "application/json",
    "application/data": "application/data",
}
"""The content types that a job's message may have, and those that Celery decodes once it is checked."""


def job_headers(
    job_id: int, attempt: int, sensitive: Sequence[str | int] = (), *, again: bool = False
) -> dict[str, Any]:
    """Return the header that identifies a message as a job's."""
    header: dict[str, Any] = {"id": job_id, "attempt": attempt}
    if sensitive:
        header["sensitive"] = list(sensitive)
    if again:
        header["again"] = True
    return {HEADER: header}


def job_of(headers: Any) -> tuple[int, int] | None:
    """Return the job id and the attempt in a message's headers; None if the message is no job's.

    Raises:
        ValueError: the header is malformed. Such a message must not run.
    """
    if not isinstance(headers, dict) or HEADER not in headers:
        return None
    header = headers[HEADER]
    if isinstance(header, dict):
        numbers = header.get("id"), header.get("attempt")
        if all(type(number) is int and 0 < number < 2**63 for number in numbers):
            return numbers  # type: ignore[return-value]  # both are ints now
    raise ValueError(f"malformed {HEADER} header: {header!r:.200}")


def readable_job_of(headers: Any) -> tuple[int, int] | None:
    """As `job_of`, but None for a malformed header, too."""
    try:
        return job_of(headers)
    except ValueError:
        return None


def job_of_context(context: Any) -> tuple[int, int] | None:
    """As `job_of`, from the request that a task sees (celery.app.task.Context).

    Every header of a message is an attribute of the request. `request.headers` lacks some of them if the
    message has a header of that name, as some tracers add. An eager request has nothing but `headers`.
    """
    return job_of(_headers_of(context))


def show_headers(context: Any) -> None:
    """Make each custom header of an eager request an attribute, as it is in a worker's request."""
    for name, value in (context.headers or {}).items():
        if not hasattr(context, name):
            setattr(context, name, value)


def _headers_of(context: Any) -> Any:
    return context.headers if context.is_eager else vars(context)


def sensitive_of(headers: Any) -> Sequence[str | int]:
    """Return which arguments of a message are masked where they are displayed."""
    header = headers.get(HEADER) if isinstance(headers, dict) else None
    hidden = header.get("sensitive") if isinstance(header, dict) else None
    return hidden if isinstance(hidden, list) else ()


def sensitive_of_context(context: Any) -> Sequence[str | int]:
    """As `sensitive_of`, from the request that a task sees."""
    return sensitive_of(_headers_of(context))
