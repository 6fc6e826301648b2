"""Rows as what callers hold: `JobRecord`, `Progress`, `Event`."""

import json
import logging
from collections.abc import Callable
from dataclasses import fields
from types import NoneType
from typing import Any

from sqlalchemy import Row

from .. import serialization
from ..models import Event, Failure, JobRecord, Progress, Unreadable
from ..redaction import ALL_POSITIONS, shifted
from ..schema import job

logger = logging.getLogger(__name__)

MAX_REPORTED = 10_000
"""Unreadable columns that are remembered, so that each is logged once."""

_reported: set[tuple[int, str]] = set()


def to_job(row: Row[Any]) -> JobRecord:
    """Return the snapshot of a row."""
    columns = row._asdict()  # an attribute of a row takes several times as long as an item
    kwargs = read_column(
        row, "kwargs", serialization.decode, dict, lambda unreadable: {"unreadable": unreadable}
    )
    sensitive, headers = read_column(
        row, "routing", _from_routing, tuple, lambda _: ((ALL_POSITIONS, *kwargs), {})
    )
    return JobRecord(
        **{name: columns[name] for name in _AS_STORED},
        args=read_column(row, "args", serialization.decode, list, lambda unreadable: [unreadable]),
        kwargs=kwargs,
        status=row.status_id,
        meta=read_column(row, "meta", serialization.decode),
        headers=headers,
        # A position counts the results of what it needs, too, and these are not among its arguments.
        sensitive=tuple(shifted(sensitive)) if row.needs_when else sensitive,
        result=read_result(row),
        error=read_error(row),
        progress=to_progress(row),
        when=row.needs_when or JobRecord.when,
    )


def read_result(row: Row[Any]) -> Any:
    """Return the decoded result of a row; None for one that was not kept (`tree_results.NOT_KEPT`)."""
    return read_column(row, "result", lambda text: serialization.decode(text or None))


def read_error(row: Row[Any]) -> Failure | None:
    """Return the decoded failure of a row."""
    failure: Failure | None = read_column(row, "error", to_failure, (Failure, NoneType), _unreadable_failure)
    return failure


_DECODED = {"args", "kwargs", "meta", "result", "error"}
_AS_STORED = {field.name for field in fields(JobRecord)} & set(job.c.keys()) - _DECODED


def read_column(
    row: Row[Any],
    column: str,
    read: Callable[[str | None], Any],
    kind: type | tuple[type, ...] = object,
    instead: Callable[[Unreadable], Any] = lambda unreadable: unreadable,
) -> Any:
    """Return the decoded value of a column; an unreadable one is logged once, and does not hide the job."""
    try:
        value = read(getattr(row, column))
        if isinstance(value, kind):
            return value
        reason = type(value).__name__
    except Exception as error:
        reason = type(error).__name__
    if (row.id, column) not in _reported:
        if len(_reported) >= MAX_REPORTED:
            _reported.clear()
        _reported.add((row.id, column))
        logger.error(
            "job %s: its %s cannot be read (%s) and is shown as unreadable; "
            "correct the row, or submit the job anew",
            row.id,
            column,
            reason,
        )
    return instead(Unreadable(reason))


def _from_routing(routing: str | None) -> tuple[tuple[str | int, ...], dict[str, Any]]:
    """Return the sensitive arguments and the headers."""
    decoded = serialization.decode(routing)
    return tuple(decoded.get("sensitive", ())), dict(decoded.get("headers") or {})


def to_failure(error: str | None) -> Failure | None:
    """Return the failure of the text that its column holds."""
    if not error:
        return None
    failure = json.loads(error)
    return Failure(**failure | {"args": serialization.decode(failure.get("args"))})


def _unreadable_failure(unreadable: Unreadable) -> Failure:
    return Failure("system", "Unreadable", repr(unreadable), "")


def to_progress(row: Row[Any]) -> Progress | None:
    """Return a job's progress."""
    if row.progress_current is None:
        return None
    return Progress(_number(row.progress_current), _number(row.progress_total))


def to_event(row: Row[Any]) -> Event:
    """Return an event of a row."""
    return Event(at=row.at, status=row.status_id, attempt=row.attempt, message=row.message, actor=row.actor)


def _number(value: Any) -> Any:
    return int(value) if value is not None and value == int(value) else value
