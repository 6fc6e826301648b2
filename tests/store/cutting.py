"""A connection that breaks at a chosen step of a verb, on every database: before the step, or after it.

A step is a statement or a commit. Broken before it, the server knows nothing of it; broken after it, it is
done, and nobody was told. Then the library asks again; or its process died of the same, and nobody does.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

_STEPS = ("do_execute", "do_execute_no_params", "do_executemany", "do_commit")


class Died(BaseException):
    """The process of a verb's author ended in the middle of it."""


@dataclass(frozen=True)
class Cut:
    """When a connection breaks."""

    step: int
    """From 1."""
    done: bool
    """The server has made that step."""
    dies: bool
    """And nobody asks again."""


class Cutter:
    """Between an engine and its driver."""

    def __init__(self, engine: Engine) -> None:
        self._dialect: Any = engine.dialect
        self._cut: Cut | None = None
        self._steps = 0
        self.has_cut = False
        """Whether the last cut came to pass."""
        for name in _STEPS:
            setattr(self._dialect, name, self._step(getattr(self._dialect, name)))

    @contextmanager
    def cutting(self, cut: Cut) -> Iterator[None]:
        """Break one connection in here, unless what is done in here has fewer steps."""
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
        # Rolled back first: the server would do it a moment later, and some verbs skip locked rows.
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
