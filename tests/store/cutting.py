"""A connection that breaks before or after a chosen step of a store call, on every database.

A step is a statement or a commit. Broken before it, the step is not done; broken after it, the step is done
and unanswered. Then the library retries, or its process has died and does not.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

_STEPS = ("do_execute", "do_execute_no_params", "do_executemany", "do_commit")


class Died(BaseException):
    """The process of the caller died in the middle of the call."""


@dataclass(frozen=True)
class Cut:
    """When a connection breaks."""

    step: int
    """Number of the step, from 1."""
    done: bool
    """Whether the server has made that step."""
    dies: bool
    """Whether the process dies, so that nothing is retried."""


class Cutter:
    """Breaks connections between an engine and its driver."""

    def __init__(self, engine: Engine) -> None:
        self._dialect: Any = engine.dialect
        self._cut: Cut | None = None
        self._steps = 0
        self.has_cut = False
        """Whether the last cut happened."""
        for name in _STEPS:
            setattr(self._dialect, name, self._step(getattr(self._dialect, name)))

    @contextmanager
    def cutting(self, cut: Cut) -> Iterator[None]:
        """Break one connection within the block, unless the block has fewer steps."""
        self._cut, self._steps, self.has_cut = cut, 0, False
        try:
            yield
        finally:
            self._cut = None

    def _step(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def step(target: Any, *given: Any, **named: Any) -> Any:
            self._steps += 1
            cut = self._cut
            if cut is None or cut.step != self._steps:
                return plain(target, *given, **named)
            self._cut, self.has_cut = None, True
            if cut.done:
                plain(target, *given, **named)
            # A cursor has its connection, and the pool's connection the driver's.
            self._break(target.dbapi_connection if hasattr(target, "dbapi_connection") else target.connection)
            raise Died if cut.dies else self._error()

        return step

    def _break(self, connection: Any) -> None:
        # Rolled back first: the server would do it a moment later, and some calls skip locked rows.
        with contextlib.suppress(self._dialect.dbapi.Error):
            connection.rollback()
        connection.close()

    def _error(self) -> Exception:
        dbapi = self._dialect.dbapi
        error: Exception = {
            "sqlite": lambda: dbapi.ProgrammingError("Cannot operate on a closed database."),
            "postgresql": lambda: dbapi.OperationalError("the connection was cut"),
            "mariadb": lambda: dbapi.OperationalError(2013, "Lost connection to server during query"),
        }[self._dialect.name]()
        return error
