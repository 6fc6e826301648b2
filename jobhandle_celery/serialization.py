"""Values to JSON text and back, through kombu's own serializer. May import errors, sensitive and text.

kombu's JSON is what the message carries, so whatever survives here survives the broker too:
datetimes, dates, UUIDs, Decimals and bytes come back as what they were.
"""

import json as plain_json
from typing import Any

from kombu.utils import json

from . import text
from .errors import ValidationError
from .redaction import HIDDEN

LIMIT = 1024 * 1024
"""Bytes of JSON that arguments, and a result, may have."""


DEEPEST = 100
"""Levels of lists and objects within each other that a value may have.

Celery pickles a job's arguments for the pool's child, and every reader of a value walks through it: what goes
much deeper ends in a RecursionError, of a worker's main process from some 500 levels on.
"""

_ENVELOPE = {"__type__", "__value__"}
"""The keys of the object that kombu's JSON makes of a datetime, say, and takes for one when it reads it."""


class NotStorableError(ValueError):
    """A value is not JSON, too large or too deep, or reads back as another; the text says which."""


def encode(value: Any) -> str:
    """Return the JSON of a value, all ASCII.

    Raises:
        NotStorableError: it is not JSON, holds itself, is over `LIMIT` bytes or `DEEPEST` levels, or has an
            object that kombu would take for a value of another type.
    """
    try:
        try:
            # kombu's encoder writes plain values in the same way, and is made anew for each.
            encoded: str = plain_json.dumps(value)
        except TypeError:
            encoded = json.dumps(value)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise NotStorableError(f"is not JSON: {error}") from None
    if len(encoded) > LIMIT:
        raise NotStorableError(f"is {len(encoded):,} bytes of JSON, more than {LIMIT:,}")
    if text.is_nested_deeper(encoded, DEEPEST):
        raise NotStorableError(f"is nested deeper than {DEEPEST} levels")
    if '"__type__"' in encoded:
        _check_envelopes(value, encoded)
    return encoded


def _check_envelopes(value: Any, encoded: str) -> None:
    inside = [value]
    while inside:
        match inside.pop():
            case dict() as some:
                if some.keys() == _ENVELOPE:
                    raise NotStorableError("has an object of the keys __type__ and __value__ alone")
                inside.extend(some.values())
            case list() | tuple() as some:
                inside.extend(some)
    try:
        decode(encoded)  # what a value's own __json__ makes of it
    except Exception as error:
        raise NotStorableError(f"cannot be read back: {type(error).__name__}") from None


def encode_given(field: str, value: Any, *, hide: bool = False) -> str:
    """Encode what a caller gave; with `hide`, an error does not show it.

    Raises:
        ValidationError: it is not JSON, is too large or holds a NUL character.
    """
    if isinstance(value, dict) and not value:
        return "{}"
    shown = HIDDEN if hide else value
    try:
        encoded = encode(value)
    except NotStorableError as error:
        raise ValidationError(field, shown, f"JSON of at most 1 MiB; this {error}") from None
    if text.holds_nul(encoded):
        raise ValidationError(field, shown, "text without NUL characters")
    return encoded


def decode(encoded: str | None) -> Any:
    """Return the value that `encode` was given; None for None."""
    return None if encoded is None else json.loads(encoded)
