"""`tasks.checksum`: the digest of a file."""

import hashlib
import os
from typing import Any, BinaryIO

from .application import app
from .regular import open_regular
from .report import Report, megabytes

CHUNK = 1024 * 1024
"""Bytes read at a time; between two of them the body looks whether it should stop."""

ALGORITHMS = sorted(name for name in hashlib.algorithms_guaranteed if not name.startswith("shake"))
"""What is accepted. The shakes have digests of any length."""


@app.task(name="tasks.checksum")
def checksum(path: str, algorithm: str = "sha256") -> dict[str, Any]:
    """Read a file and return its path, its size in bytes and its digest in hexadecimal.

    Progress is in bytes. Stops when it is cancelled.

    Raises:
        ValueError: no such algorithm, or not a regular file.
        OSError: it cannot be read.
        ChangedError: it was written to meanwhile.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm: {algorithm!r}; accepted: {', '.join(ALGORITHMS)}")
    with open_regular(path) as file:
        before = os.fstat(file.fileno())
        size, digest = _digest(path, file, algorithm, before.st_size)
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ChangedError(f"{path!r} was written to while it was read; its digest would mean nothing")
    return {"path": path, "bytes": size, "digest": digest}


class ChangedError(RuntimeError):
    """A file was written to while it was read."""


def _digest(path: str, file: BinaryIO, algorithm: str, total: int) -> tuple[int, str]:
    # Not for security here, so also where a policy forbids the old ones.
    digest = hashlib.new(algorithm, usedforsecurity=False)
    report, chunk, done = Report(), memoryview(bytearray(CHUNK)), 0
    try:
        while read := file.readinto(chunk):  # type: ignore[attr-defined]  # of FileIO
            digest.update(chunk[:read])
            done += read
            report(f"{os.path.basename(path)}: {megabytes(done)} of {megabytes(total)}", done, total or None)
    except OSError as error:
        # read() does not know the name.
        raise OSError(error.errno, error.strerror, path) from None
    return done, digest.hexdigest()
