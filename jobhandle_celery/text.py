"""What any text goes through on its way into a row. Imports nothing of ours.

PostgreSQL's ``text`` holds neither NUL nor lone surrogates (Python's form of bytes that are not
UTF-8, as in file names), and a log file that somebody puts into a message must not fill the table.
"""

import re

MESSAGE_LIMIT = 10_000
"""Characters of a message that are kept; the last of them is an ellipsis if it was longer."""

TRACEBACK_LIMIT = 100_000
"""Characters of a traceback that are kept: its end, where the error is."""

_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)  # possessive: linear on any text
_NO_BRACKET = re.compile(r"[^\[\]{}]+")
_AS_LISTS = str.maketrans("{}", "[]")
_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def storable(text: str) -> str:
    """Remove NUL characters and spell lone surrogates as escapes (``\\udcff``)."""
    return text.replace("\0", "").encode("utf-8", "backslashreplace").decode("utf-8")


def message(text: str) -> str:
    """Make a message storable and cut it at `MESSAGE_LIMIT` characters."""
    text = storable(text)
    return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 1] + "…"


def traceback(text: str) -> str:
    """Make a traceback storable and keep its last `TRACEBACK_LIMIT` characters."""
    text = storable(text)
    return text if len(text) <= TRACEBACK_LIMIT else "…" + text[1 - TRACEBACK_LIMIT :]


def ascii(text: str) -> str:
    """Spell whatever is not ASCII as escapes (``\\xe9``), for a database that takes no more."""
    return text.encode("ascii", "backslashreplace").decode("ascii")


def holds_nul(json_text: str) -> bool:
    """Say whether a JSON document has a NUL character in one of its strings."""
    return _ESCAPED_NUL.search(json_text) is not None


def is_nested_deeper(json_text: str, levels: int) -> bool:
    """Say whether a JSON document has lists and objects within each other, more than so many levels."""
    if json_text.count("[") + json_text.count("{") <= levels:
        return False
    brackets = _NO_BRACKET.sub("", _STRING.sub("", json_text)).translate(_AS_LISTS)
    for _ in range(levels):
        outer = brackets.replace("[]", "")  # without the innermost lists
        if len(outer) == len(brackets):
            break  # nothing is left, or what is left is no JSON
        brackets = outer
    return bool(brackets)
