"""Verbs that OpenTelemetry is to make no spans of. Imports nothing of ours.

A worker polls its database several times a second, also when nothing is to be done, and no request asked for
it: with the instrumentation of a driver or of SQLAlchemy each statement would be a trace of its own.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


def untraced(verb: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Suppress OpenTelemetry's instrumentation while a verb executes, if the application has loaded it."""

    @functools.wraps(verb)
    def quietly(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        # Who instruments a driver has imported this module, and who has not needs none of it.
        loaded: Any = sys.modules.get("opentelemetry.instrumentation.utils")
        suppress = getattr(loaded, "suppress_instrumentation", None)
        if suppress is None:
            return verb(self, *args, **kwargs)
        with suppress():
            return verb(self, *args, **kwargs)

    return quietly
