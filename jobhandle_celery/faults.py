"""Errors of this library's own code, and of calls to other code that do not fit it. Imports nothing of ours.

A database or a broker that is away is an outage, and expected; what is reported here is a bug. The first of
its kind is logged with its traceback; each is passed to every listener, which count them for `doctor`.
"""

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakSet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fault:
    """One error of our own code."""

    place: str
    """What failed, in a few words."""
    error: str
    """The exception's class and where it was raised; never its message, which may quote a value."""


class Listener:
    """Receives faults, from any thread; must neither raise nor wait."""

    def __init__(self, hear: Callable[[Fault], None]) -> None:
        self.hear = hear
        _listeners.add(self)


_listeners: WeakSet[Listener] = WeakSet()
_logged: set[Fault] = set()


def report(place: str, error: BaseException, state: str, *, hide: bool = False) -> None:
    """Report an unexpected error.

    Args:
        place: What failed, in a few words.
        error: The error, with its traceback.
        state: What happens instead, for the log.
        hide: Keep the error's message out of the log: it may quote sensitive arguments.
    """
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    fault = Fault(place, f"{type(error).__name__}{where}")
    if fault in _logged:
        logger.debug("%s failed again: %s; %s", place, fault.error, state)
    else:
        _logged.add(fault)
        said = "%s failed by an internal error (%s); %s; its repetitions are counted in `jobs doctor`"
        if hide:
            said += "\n" + "".join(traceback.format_list(frames)).replace("%", "%%")
        logger.error(said, place, fault.error, state, exc_info=None if hide else error)
    for listener in list(_listeners):
        listener.hear(fault)
