"""The user and the session for which Celery's own calls submit jobs: see `Jobs.submitting`."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Scope:
    """The user, group and session of jobs that are submitted within a block of `Jobs.submitting`."""

    username: str | None = None
    groupname: str | None = None
    session: Any = None


_SERVICE = Scope()


class ScopeVariable:
    """The current scope of one app's jobs, for each thread and coroutine."""

    def __init__(self) -> None:
        self._current: ContextVar[Scope] = ContextVar("jobhandle_scope", default=_SERVICE)

    @property
    def current(self) -> Scope:
        """The scope of this thread or coroutine; outside of every block that of the service."""
        return self._current.get()

    @contextmanager
    def entered(self, scope: Scope) -> Iterator[None]:
        """Make a scope the current one during the block."""
        token = self._current.set(scope)
        try:
            yield
        finally:
            self._current.reset(token)
