"""Opens regular files."""

import os
import stat
from typing import BinaryIO


def open_regular(path: str) -> BinaryIO:
    """Open a regular file to read its bytes; symbolic links are followed.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is a folder, a pipe or a device. Opening a pipe would wait for its writer, and ignore
            a cancel.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"{path!r} is not a regular file")
        return open(descriptor, "rb", buffering=0)  # the caller closes it
    except BaseException:
        os.close(descriptor)
        raise
