"""Values to JSON text and back, through kombu's own serializer. May import errors, sensitive and text.

kombu's JSON is what the message carries, so whatever survives here survives the broker too:
datetimes, dates, UUIDs, Decimals and bytes come back as what they were.
"""

import json as plain_json
from typing import Any

from kombu.utils import json

from . import text
from .errors import ValidationError
from .sensitive import HIDDEN

LIMIT = 1024 * 1024
"""Bytes of JSON that arguments, and a result, may have."""


class NotStorableError(ValueError):
    """A value is not JSON, or too large; the text says which."""


def encode(value: Any) -> str:
    """Return the JSON of a value, all ASCII.

    Raises:
        NotStorableError: it is not JSON, holds itself, or is over `LIMIT` bytes.
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
    return encoded


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
