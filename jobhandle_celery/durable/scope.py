"""For whom, and in whose transaction, Celery's own calls submit jobs."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Scope:
    """What `Jobs.submitting` says of the jobs that are submitted within it."""

    username: str | None = None
    groupname: str | None = None
    session: Any = None


_SERVICE = Scope()


class ScopeVariable:
    """The scope of one app's jobs, per context: of a thread, or of a coroutine."""

    def __init__(self) -> None:
        self._current: ContextVar[Scope] = ContextVar("jobhandle_scope", default=_SERVICE)

    @property
    def current(self) -> Scope:
        return self._current.get()

    @contextmanager
    def entered(self, scope: Scope) -> Iterator[None]:
        token = self._current.set(scope)
        try:
            yield
        finally:
            self._current.reset(token)
