"""The decorator of the store's methods that are retried.

Such a method must recognise its own earlier success, since the answer to a commit may have been lost.
"""

import functools
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Concatenate, ParamSpec, TypeVar

from ..errors import DatabaseUnavailableError

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")

_RECONNECTS = 6
"""Attempts on new connections: all those that a pool keeps may be broken, and one more."""

_RETRIES_FOR = 10.0
"""Seconds after which there is no further retry, except the first one after a broken connection."""


class _Call:
    """One call of a method, with its retries."""

    is_uncertain = False
    seen: Any = None


_call: ContextVar[_Call] = ContextVar("jobhandle_call")


def is_retry() -> bool:
    """Return True, within a method, if an answer was lost: its writes may be committed already."""
    call = _call.get(None)  # a submit in a caller's session is not retried
    return call is not None and call.is_uncertain


def remember(seen: Any) -> None:
    """Keep what this try has seen before its write, for `remembered` of a retry."""
    _call.get().seen = seen


def remembered() -> Any:
    """Return what an earlier try has seen whose answer was lost; None if this is no retry."""
    call = _call.get()
    return call.seen if call.is_uncertain else None


_limit: ContextVar[float | None] = ContextVar("jobhandle_retry_limit", default=None)


@contextmanager
def limit_retries(seconds: float) -> Iterator[None]:
    """Limit, within the block, the time of retries and of the wait for SQLite's lock.

    For optional work, which must not wait for a transaction that its own thread has open.
    """
    before = _limit.set(seconds)
    try:
        yield
    finally:
        _limit.reset(before)


def retry_limit() -> float | None:
    """Return the seconds of `limit_retries`; None outside of it."""
    return _limit.get()


def retry_on_disconnect(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Retry a method: at once after a broken connection, after a pause after a deadlock.

    The most common failure is a pooled connection that the server has closed meanwhile; it costs one retry. A
    server that cannot be reached is not retried here.
    """

    @functools.wraps(method)
    def retried(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        limit = retry_limit()
        until = time.monotonic() + (_RETRIES_FOR if limit is None else limit)
        soon, at_once = 0, 0
        call = _Call()
        token = _call.set(call)
        try:
            while True:
                try:
                    return method(self, *args, **kwargs)
                except DatabaseUnavailableError as error:
                    late = time.monotonic() >= until and (error.retry == "after_pause" or at_once > 0)
                    if error.retry is None or late or at_once + 1 == _RECONNECTS:
                        raise
                    if error.retry == "after_pause":
                        # The database has rolled back: nothing is written.
                        time.sleep(random.uniform(0.0, 0.02 * 2 ** min(soon, 5)))
                        soon += 1
                    else:
                        call.is_uncertain = True
                        at_once += 1
        finally:
            _call.reset(token)
            call.is_uncertain = False  # for tasks that outlive the call, and inherit its context

    return retried
