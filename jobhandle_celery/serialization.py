"""Values as JSON text, and text as a database can store it.

JSON is kombu's, which the messages carry: what survives here survives the broker. Datetimes, dates, UUIDs,
Decimals and bytes come back as what they were.

PostgreSQL's ``text`` holds neither NUL nor lone surrogates (Python's form of bytes that are not UTF-8, as in
file names); and a log file in a message must not fill the table.
"""

import json as plain_json
import re
from typing import Any

from kombu.utils import json

from .errors import ValidationError
from .redaction import HIDDEN

LIMIT = 1024 * 1024
"""Bytes of JSON that arguments, and a result, may have."""

MAX_DEPTH = 100
"""Levels of lists and objects within each other that a value may have.

Celery pickles the arguments for a child process, and readers traverse values recursively: some 500 levels end
in a RecursionError in the worker's main process.
"""

MESSAGE_LIMIT = 10_000
"""Characters of a message that are kept; the last of them is an ellipsis if it was longer."""

TRACEBACK_LIMIT = 100_000
"""Characters of a traceback that are kept: its end, where the error is."""

_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)  # possessive: linear on any text
_NO_BRACKET = re.compile(r"[^\[\]{}]+")
_AS_LISTS = str.maketrans("{}", "[]")
_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")

_ENVELOPE = {"__type__", "__value__"}
"""The keys of the object by which kombu's JSON represents a datetime, for example."""


class NotStorableError(ValueError):
    """A value is not JSON, too large or too deep, or is decoded as another value; the text says which."""


def encode(value: Any) -> str:
    """Return the JSON of a value, all ASCII.

    Raises:
        NotStorableError: it is not JSON, holds itself, is over `LIMIT` bytes or `MAX_DEPTH` levels, or has an
            object that kombu would take for a value of another type.
    """
    try:
        try:
            # kombu's encoder writes plain values in the same way, but is slower.
            encoded: str = plain_json.dumps(value)
        except TypeError:
            encoded = json.dumps(value)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise NotStorableError(f"is not JSON: {error}") from None
    if len(encoded) > LIMIT:
        raise NotStorableError(f"is {len(encoded):,} bytes of JSON, more than {LIMIT:,}")
    if is_nested_deeper(encoded, MAX_DEPTH):
        raise NotStorableError(f"is nested deeper than {MAX_DEPTH} levels")
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
        decode(encoded)  # a value's own __json__ may return anything
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
    if holds_nul(encoded):
        raise ValidationError(field, shown, "text without NUL characters")
    return encoded


def decode(encoded: str | None) -> Any:
    """Return the value that `encode` was given; None for None."""
    if encoded is None:
        return None
    # Without an envelope, whose key an escape may spell, kombu decodes plain values; but it takes longer.
    plain = '"__type__"' not in encoded and "\\" not in encoded
    return plain_json.loads(encoded) if plain else json.loads(encoded)


def storable(text: str) -> str:
    """Remove NUL characters and spell lone surrogates as escapes (``\\udcff``)."""
    if text.isascii():
        return text.replace("\0", "")
    return text.replace("\0", "").encode("utf-8", "backslashreplace").decode("utf-8")


def clip_message(text: str) -> str:
    """Make a message storable and cut it at `MESSAGE_LIMIT` characters."""
    text = storable(text)
    return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 1] + "…"


def clip_traceback(text: str) -> str:
    """Make a traceback storable and keep its last `TRACEBACK_LIMIT` characters."""
    text = storable(text)
    return text if len(text) <= TRACEBACK_LIMIT else "…" + text[1 - TRACEBACK_LIMIT :]


def to_ascii(text: str) -> str:
    """Spell whatever is not ASCII as escapes (``\\xe9``), for a database that takes no more."""
    return text.encode("ascii", "backslashreplace").decode("ascii")


def holds_nul(json_text: str) -> bool:
    """Return True if a JSON document has a NUL character in one of its strings."""
    return "\\u0000" in json_text and _ESCAPED_NUL.search(json_text) is not None


def is_nested_deeper(json_text: str, levels: int) -> bool:
    """Return True if a JSON document has more than so many levels of lists and objects."""
    if json_text.count("[") + json_text.count("{") <= levels:
        return False
    brackets = _NO_BRACKET.sub("", _STRING.sub("", json_text)).translate(_AS_LISTS)
    for _ in range(levels):
        outer = brackets.replace("[]", "")  # without the innermost lists
        if len(outer) == len(brackets):
            break  # nothing is left, or what is left is no JSON
        brackets = outer
    return bool(brackets)
