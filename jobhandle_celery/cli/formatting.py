"""Values formatted for people, each in one line.

The text in a row was written by others: control characters are escaped, not sent to the terminal.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any

from ..models import JobRecord, Progress

_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def escape_control(text: str) -> str:
    """Escape every character that a terminal would interpret; newlines stay."""
    return "".join(
        char
        if char.isprintable() or char == "\n"
        else " "
        if char.isspace()
        else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def one_line(text: str) -> str:
    """Return text as one line without control characters."""
    return escape_control(" ".join(text.split()))


def format_duration(duration: timedelta | float | None) -> str:
    """Return a duration, or seconds, in its two largest units: ``1h30m``; ``-`` for None."""
    if duration is None:
        return "-"
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else float(duration)
    sign, seconds = ("-" if seconds < 0 else ""), abs(seconds)
    if 0 < seconds < 1:
        return f"{sign}{max(round(seconds * 1000), 1)}ms"
    if seconds < 10:
        return f"{sign}{seconds:.1f}s".replace(".0s", "s")
    rest = round(seconds)
    parts: list[str] = []
    for unit, size in _UNITS:
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count}{unit}" if count else "")
    return sign + "".join(parts[:2])


def format_time(value: object) -> str:
    """Return a time in UTC, to the second; ``-`` for None."""
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}" if isinstance(value, datetime) else "-"


def format_progress(value: Progress | None) -> str:
    """Return progress as ``40/100``, or ``40`` without a total."""
    if value is None:
        return "-"
    return f"{value.current:g}" if value.total is None else f"{value.current:g}/{value.total:g}"


def to_json(value: Any) -> str:
    """Return a value as JSON in one line; what JSON cannot represent (NaN, for example) becomes text."""
    try:
        return json.dumps(value, default=str, ensure_ascii=True, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(json.loads(json.dumps(value, default=str))), ensure_ascii=True)


def _finite(value: Any) -> Any:
    match value:
        case float() if not isfinite(value):
            return str(value)
        case list():
            return [_finite(item) for item in value]
        case dict():
            return {name: _finite(item) for name, item in value.items()}
    return value


def format_arguments(job: JobRecord, routing: Mapping[str, Any]) -> tuple[str, str]:
    """Return the positional and the keyword arguments of a job, redacted.

    Commands show arguments only by this function: the submitter may have hidden them from Celery's logs and
    events, and so from here (``sensitive``, ``argsrepr``, ``kwargsrepr``).
    """
    args, kwargs = routing.get("argsrepr"), routing.get("kwargsrepr")
    shown_args, shown_kwargs = job.shown_arguments
    return (
        args if isinstance(args, str) else to_json(list(shown_args)),
        kwargs if isinstance(kwargs, str) else to_json(shown_kwargs),
    )
