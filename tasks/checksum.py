"""`tasks.checksum`: the digest of a file."""

import hashlib
import os
from typing import Any, BinaryIO

from .application import app
from .progress import ProgressReporter, megabytes
from .regular_file import open_regular

CHUNK = 1024 * 1024
"""Bytes read at a time; the task checks for a cancel between two chunks."""

ALGORITHMS = sorted(name for name in hashlib.algorithms_guaranteed if not name.startswith("shake"))
"""The accepted algorithms. The shakes have no fixed length."""


@app.task(name="tasks.checksum")
def checksum(path: str, algorithm: str = "sha256") -> dict[str, Any]:
    """Return the path, the size in bytes and the hexadecimal digest of a file.

    Reports progress in bytes. Stops when it is cancelled.

    Raises:
        ValueError: the algorithm is unknown, or the path is not a regular file.
        OSError: the file cannot be read.
        ChangedError: the file changed while it was read.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm: {algorithm!r}; accepted: {', '.join(ALGORITHMS)}")
    with open_regular(path) as file:
        before = os.fstat(file.fileno())
        size, digest = _digest(path, file, algorithm, before.st_size)
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ChangedError(f"{path!r} changed while it was read: it has no checksum")
    return {"path": path, "bytes": size, "digest": digest}


class ChangedError(RuntimeError):
    """A file changed while it was read."""


def _digest(path: str, file: BinaryIO, algorithm: str, total: int) -> tuple[int, str]:
    # Not for security: also available where a policy forbids the old algorithms.
    digest = hashlib.new(algorithm, usedforsecurity=False)
    report, chunk, done = ProgressReporter(), memoryview(bytearray(CHUNK)), 0
    try:
        while size := file.readinto(chunk):  # type: ignore[attr-defined]  # of FileIO
            digest.update(chunk[:size])
            done += size
            report(f"{os.path.basename(path)}: {megabytes(done)} of {megabytes(total)}", done, total or None)
    except OSError as error:
        # The error of read() does not have the name.
        raise OSError(error.errno, error.strerror, path) from None
    return done, digest.hexdigest()
