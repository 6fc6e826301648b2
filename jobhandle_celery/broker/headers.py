"""The headers of a job's message: the one that identifies it, with a content type, and custom ones.

The content type keeps a worker without `Jobs` from running a job unclaimed: its consumer rejects types that
``accept_content`` does not list, and kombu has no decoder for it. A worker with `Jobs` replaces it by the
type that Celery knows once the message has passed the checks before the claim (see message_guard).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from .. import serialization
from ..errors import ValidationError
from ..redaction import shifted
from .dry_run import UnsentMessage

HEADER = "jobhandle"
"""The header that identifies a job: ``{"id": 42, "attempt": 1}``.

``"sensitive"`` lists arguments that are masked where they are displayed; ``"again"`` is true if a message for
this attempt was published before, and was not claimed. Of a job with needs, ``"needs"`` is true if the
arguments lack their results. Of a member of a tree, ``"parent"`` is its node, which becomes Running; the
first message of a member has ``"first"``.
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

CELERY_HEADERS = ("argsrepr", "kwargsrepr", "root_id", "parent_id", "shadow")
"""Headers of Celery that a signal handler may change. The row keeps them apart from custom headers."""
_RESERVED_HEADERS = {"id", "task", "eta", "expires", "retries"}
"""Headers that name the task of a message, or its times: neither a handler nor a caller may set them."""


def job_headers(
    job_id: int, attempt: int, sensitive: Sequence[str | int] = (), *, again: bool = False, **tree: Any
) -> dict[str, Any]:
    """Return the header that identifies a message as a job's; `tree` are the fields of a job with needs."""
    header: dict[str, Any] = {"id": job_id, "attempt": attempt, **tree}
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


def headers_of(context: Any) -> Any:
    """Return a message's headers from the request that a task sees (celery.app.task.Context).

    Every header of a message is an attribute of the request. `request.headers` lacks some of them if the
    message has a header of that name, as some tracers add. An eager request has nothing but `headers`.
    """
    return context.headers if context.is_eager else vars(context)


def show_headers(context: Any) -> None:
    """Make each custom header of an eager request an attribute, as it is in a worker's request."""
    for name, value in (context.headers or {}).items():
        if not hasattr(context, name):
            setattr(context, name, value)


def sensitive_of(headers: Any) -> Sequence[str | int]:
    """Return which arguments of a message are masked where they are displayed."""
    header = _header_in(headers)
    hidden = header.get("sensitive")
    if not isinstance(hidden, list):
        return ()
    # A position counts the results, too.
    return shifted(hidden) if header.get("needs") else hidden


def lacks_results(context: Any) -> bool:
    """Return True if results of what the job needs are to be put before the arguments of its message."""
    return bool(_header_in(headers_of(context)).get("needs"))


def put_results(context: Any, results: Sequence[Any]) -> None:
    """Put results before the arguments of a request, and note in its header that they are there."""
    context.args = [*results, *context.args]
    header = {name: value for name, value in headers_of(context)[HEADER].items() if name != "needs"}
    # Its headers are also the main process's, where bodies run in threads.
    if context.is_eager:
        context.headers = {**context.headers, HEADER: header}
    else:
        setattr(context, HEADER, header)


def node_of(context: Any) -> tuple[int, bool] | None:
    """Return the node above a member of a tree, and if the message is its first; None for other jobs."""
    header = _header_in(headers_of(context))
    parent = header.get("parent")
    return (parent, bool(header.get("first"))) if type(parent) is int else None


def _header_in(headers: Any) -> dict[str, Any]:
    header = headers.get(HEADER) if isinstance(headers, dict) else None
    return header if isinstance(header, dict) else {}


# Those of callers and of handlers of publish signals.


def custom_headers(message: UnsentMessage) -> dict[str, Any]:
    """Return the headers of a message that Celery itself does not give it."""
    changed = message.changed_headers
    return checked_headers({name: changed[name] for name in changed if name not in CELERY_HEADERS})


def checked_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return custom headers without this library's, which a task may have passed on.

    Raises:
        ValidationError: they are no JSON, or one of them is reserved.
    """
    custom = {name: value for name, value in headers.items() if name != HEADER}
    for name in _RESERVED_HEADERS & custom.keys():
        raise ValidationError("headers", name, "other names: this one names the task, or its times")
    serialization.encode_given("headers", custom)
    return custom
