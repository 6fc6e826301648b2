"""The manifest, in the format of `sha256sum -c`."""

import os
import uuid
from collections.abc import Iterable
from pathlib import Path

_ESCAPES = ((b"\\", b"\\\\"), (b"\n", b"\\n"), (b"\r", b"\\r"))


def format_line(digest: str, name: str) -> bytes:
    """Return the line of a file, with the bytes that its name has on disk.

    As GNU's sha256sum writes it: in a name, backslashes and line ends are escaped, and a line with an escape
    begins with a backslash.
    """
    raw = os.fsencode(name)
    escaped = raw
    for character, escape in _ESCAPES:
        escaped = escaped.replace(character, escape)
    prefix = b"" if escaped == raw else b"\\"
    return prefix + digest.encode() + b"  " + escaped + b"\n"


def write(path: Path, digests: Iterable[tuple[str, str]]) -> None:
    """Write a manifest of digests and names, replacing the file atomically."""
    unfinished = path.with_name(f".{uuid.uuid4()}.unfinished")
    try:
        with unfinished.open("wb") as manifest:
            manifest.writelines(format_line(digest, name) for digest, name in digests)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
