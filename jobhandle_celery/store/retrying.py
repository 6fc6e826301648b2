"""Verbs that are asked again: at once on another connection, soon after a deadlock. May import errors.

The author of a verb that is marked `repeatable` recognises its own earlier success, see the verbs.
"""

import functools
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Concatenate, ParamSpec, TypeVar

from ..errors import DatabaseUnavailableError

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")

_REPEATS = 6
"""How often a verb is asked on another connection: as many as a pool keeps may be broken, and one more."""

_REPEATS_FOR = 10.0
"""Seconds after which a verb is not asked again, but for the first time that a connection was lost."""

_repeating: ContextVar[bool] = ContextVar("jobhandle_repeating", default=False)


def repeating() -> bool:
    """Say, within a verb, whether what it would write may be there, written by itself: an answer was lost."""
    return _repeating.get()


_brief: ContextVar[float | None] = ContextVar("jobhandle_brief", default=None)


@contextmanager
def briefly(seconds: float) -> Iterator[None]:
    """Have the verbs in here not be asked again for longer than that, nor wait so long for SQLite's lock.

    For what may be left undone, and must not wait for a transaction that its own thread has open.
    """
    before = _brief.set(seconds)
    try:
        yield
    finally:
        _brief.reset(before)


def brief() -> float | None:
    """Return the seconds of `briefly`; None outside."""
    return _brief.get()


def repeatable(verb: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Ask again where asking again may help: at once after a broken connection, soon after a deadlock.

    A pooled connection that the server has closed meanwhile is the most common failure there is; it
    costs one repeat. A server that cannot be reached is not asked again here.
    """

    @functools.wraps(verb)
    def asked_again(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        seconds = brief()
        until = time.monotonic() + (_REPEATS_FOR if seconds is None else seconds)
        uncertain, soon, at_once = False, 0, 0
        while True:
            asking = _repeating.set(uncertain)
            try:
                return verb(self, *args, **kwargs)
            except DatabaseUnavailableError as error:
                late = time.monotonic() >= until and (error.again == "soon" or at_once > 0)
                if error.again is None or late or at_once + 1 == _REPEATS:
                    raise
                if error.again == "soon":
                    # An author that repeats has written nothing.
                    time.sleep(random.uniform(0.0, 0.02 * 2 ** min(soon, 5)))
                    soon += 1
                else:
                    uncertain = True
                    at_once += 1
            finally:
                _repeating.reset(asking)

    return asked_again
