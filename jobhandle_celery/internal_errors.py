"""Reports errors of this library's own code, and of calls to other code that do not fit it.

An unavailable database or broker is expected; what is reported here is a bug. The first of its kind is logged
with its traceback; all are counted for `jobs doctor`.
"""

import logging
import mmap
import struct
import traceback
from typing import Any

logger = logging.getLogger(__name__)

COMMAND = "jobhandle_internal_errors"
"""The remote control command that returns a worker's count."""

_HEAD = struct.Struct("<QH")
_SIZE = 1024

_counted = mmap.mmap(-1, _SIZE)
"""The count and the last error's name. Shared with processes that are forked later, so that a worker reports
those of its children."""

_logged: set[tuple[str, str]] = set()


def is_bug(error: BaseException) -> bool:
    """Return True for an error that no database, broker or driver raises."""
    return type(error).__module__ == "builtins" and not isinstance(error, OSError)


def report(place: str, error: BaseException, state: str, *, hide: bool = False) -> None:
    """Report an unexpected error; `place` is what failed, and `state` what happens next.

    `hide` keeps the error's message out of the log: it may quote sensitive arguments.
    """
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    name = f"{type(error).__name__}{where}"
    _count(f"{place}: {name}")
    if (place, name) in _logged:
        logger.debug("%s failed again by an internal error (%s); %s", place, name, state)
        return
    _logged.add((place, name))
    text = "%s failed by an internal error (%s); %s; its repetitions are counted in `jobs doctor`"
    if hide:
        text += "\n" + "".join(traceback.format_list(frames)).replace("%", "%%")
    logger.error(text, place, name, state, exc_info=None if hide else error)


def log(place: str, error: Exception, state: str) -> None:
    """Report a bug; log any other error as a warning."""
    if is_bug(error):
        report(place, error, state)
    else:
        logger.warning("%s failed (%s: %s); %s", place, type(error).__name__, error, state)


def _count(last: str) -> None:
    # Not atomic: two processes at the same instant may count once. The log has both.
    text = last.encode(errors="replace")[: _SIZE - _HEAD.size]
    count, _ = _HEAD.unpack_from(_counted)
    _counted[_HEAD.size : _HEAD.size + len(text)] = text
    _HEAD.pack_into(_counted, 0, count + 1, len(text))


def counted() -> dict[str, Any]:
    """Return the count of this process and its relatives by fork, and the last error."""
    count, length = _HEAD.unpack_from(_counted)
    last = bytes(_counted[_HEAD.size : _HEAD.size + length]).decode(errors="replace")
    return {"count": count, "last": last}
