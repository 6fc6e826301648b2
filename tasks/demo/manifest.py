"""The manifest, as `sha256sum -c` reads it. May import files."""

import os
import uuid
from collections.abc import Iterable
from pathlib import Path

_ESCAPES = ((b"\\", b"\\\\"), (b"\n", b"\\n"), (b"\r", b"\\r"))


def line(digest: str, name: str) -> bytes:
    """Return the line of one file, with the bytes that its name has on disk.

    GNU's form: a name with a backslash or an end of line in it has these escaped, and then the whole line
    begins with a backslash.
    """
    raw = os.fsencode(name)
    escaped = raw
    for character, escape in _ESCAPES:
        escaped = escaped.replace(character, escape)
    mark = b"" if escaped == raw else b"\\"
    return mark + digest.encode() + b"  " + escaped + b"\n"


def write(path: Path, digests: Iterable[tuple[str, str]]) -> None:
    """Write a manifest of digests and names, whole or not at all."""
    unfinished = path.with_name(f".{uuid.uuid4()}.unfinished")
    try:
        with unfinished.open("wb") as manifest:
            manifest.writelines(line(digest, name) for digest, name in digests)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
