"""Values as people read them, each in one line. Imports nothing of ours but model.

What stands in a row was written by others: what a terminal would obey is spelled out, not sent to it.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any

from ..models import JobRecord, Progress

_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def harmless(text: str) -> str:
    """Spell out every character that a terminal would obey rather than show; lines stay lines."""
    return "".join(
        one if one.isprintable() or one == "\n" else " " if one.isspace() else _spelled(one) for one in text
    )


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def one_line(text: str) -> str:
    """Return text as one harmless line."""
    return harmless(" ".join(text.split()))


def span(duration: timedelta | float | None) -> str:
    """Return a duration in its two largest units: ``1h30m``; ``-`` for None."""
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


def moment(value: object) -> str:
    """Return a moment in UTC, to the second; ``-`` for None."""
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}" if isinstance(value, datetime) else "-"


def progress(value: Progress | None) -> str:
    """Return how far something is: ``40/100``."""
    if value is None:
        return "-"
    return f"{value.current:g}" if value.total is None else f"{value.current:g}/{value.total:g}"


def as_json(value: Any) -> str:
    """Return a value as JSON in one line; what JSON does not have, NaN among it, is its text."""
    try:
        return json.dumps(value, default=str, ensure_ascii=True, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(json.loads(json.dumps(value, default=str))), ensure_ascii=True)


def _finite(value: Any) -> Any:
    match value:
        case float() if not isfinite(value):
            return str(value)
        case list():
            return [_finite(one) for one in value]
        case dict():
            return {name: _finite(one) for name, one in value.items()}
    return value


def arguments(job: JobRecord, routing: Mapping[str, Any]) -> tuple[str, str]:
    """Return the positional and the keyword arguments of a job as they may be shown.

    The one place by which a command shows them: who submitted a job may have hidden them from Celery's
    logs and events, and so from here (``sensitive``, ``argsrepr``, ``kwargsrepr``).
    """
    args, kwargs = routing.get("argsrepr"), routing.get("kwargsrepr")
    shown_args, shown_kwargs = job.shown_arguments
    return (
        args if isinstance(args, str) else as_json(list(shown_args)),
        kwargs if isinstance(kwargs, str) else as_json(shown_kwargs),
    )
