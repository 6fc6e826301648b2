"""Execution of statements by psycopg, without SQLAlchemy's `Connection`.

A claim and a finish need nearly half the processor time less (benchmarks/README.md): a `Connection` repeats
the same look-ups and conversions in every execution. A statement that is built once is compiled once here,
and executed by the driver on a connection of the engine's pool.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, Executable
from sqlalchemy.exc import DBAPIError

from ..errors import JobHandleError
from .connections import is_own_psycopg

_WATCHED = ("before_execute", "after_execute", "before_cursor_execute", "after_cursor_execute")
"""The events that a direct execution does not fire."""


class NotDirect(Exception):
    """The direct execution is rolled back, and SQLAlchemy is to be used."""


_ORDINARY = (JobHandleError, NotDirect)
"""Raised between statements: the connection is intact."""


class DirectPsycopg:
    """Direct execution on the connections of one engine."""

    def __init__(self, engine: Engine, schemas: Mapping[None, str] | None) -> None:
        self.engine = engine
        self._schemas = schemas
        self._prepared: dict[Executable, _Prepared] = {}
        self._driver: Any = engine.dialect.dbapi
        self._possible = is_own_psycopg(engine)

    @property
    def open(self) -> bool:
        """False if the engine is not our own with psycopg, or has listeners."""
        dispatch = self.engine.dispatch
        return self._possible and not any(getattr(dispatch, name) for name in _WATCHED)

    def rows(self, statement: Executable, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Execute a statement in no transaction; return its rows.

        Raises:
            DBAPIError: SQLAlchemy's, as if it had executed the statement.
        """
        prepared = self._prepare(statement)
        with self._driver_connection(prepared) as connection, connection.cursor() as cursor:
            self.engine.dialect.do_execute(cursor, prepared.text, prepared.parameters(parameters))
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows

    def rows_of_each(
        self,
        statement: Executable,
        each: Iterable[Mapping[str, Any]],
        check: Callable[[list[list[tuple[Any, ...]]]], None],
    ) -> None:
        """Execute a statement for each of several parameters, in one transaction and in pipeline mode.

        The next parameters are prepared while the server executes the statement for those before. `check`
        gets all rows before the commit. If it, or the preparation, raises `NotDirect` or an error of ours,
        nothing is written. The server's limit for idle transactions does not apply in a pipeline, so the
        statement must lock nothing that another process may want. A server that is blocked, and reads nothing
        for as long as a silent peer is tolerated, loses the connection.

        Raises:
            NotDirect: see above, or libpq is older than 14 and has no pipeline mode.
            DBAPIError: SQLAlchemy's, as if it had executed the statement.
        """
        if not self._driver.Pipeline.is_supported():
            raise NotDirect
        prepared = self._prepare(statement)
        with self._driver_connection(prepared) as connection, connection.cursor() as cursor:
            cursor.execute("BEGIN")
            with connection.pipeline():
                try:
                    cursors = [self._send(connection, prepared, parameters) for parameters in each]
                    rows = [cursor.fetchall() for cursor in cursors]
                except (self._driver.Error, *_ORDINARY):
                    raise
                except BaseException:
                    connection.close()  # or the end of the pipeline would wait for the server
                    raise
            check(rows)
            cursor.execute("COMMIT")

    def _send(self, connection: Any, prepared: "_Prepared", parameters: Mapping[str, Any]) -> Any:
        cursor = connection.cursor()
        self.engine.dialect.do_execute(cursor, prepared.text, prepared.parameters(parameters))
        return cursor

    def _prepare(self, statement: Executable) -> "_Prepared":
        prepared = self._prepared.get(statement)
        if prepared is None:
            prepared = self._prepared[statement] = _Prepared(statement, self.engine, self._schemas)
        return prepared

    @contextmanager
    def _driver_connection(self, prepared: "_Prepared") -> Iterator[Any]:
        """Open a connection of the pool, in autocommit."""
        try:
            pooled: Any = self.engine.raw_connection()
        except self._driver.Error as error:
            raise self._as_sqlalchemy_error(error, prepared.text) from error
        connection = pooled.driver_connection
        try:
            if not connection.autocommit:
                connection.autocommit = True
            yield connection
        except self._driver.Error as error:
            lost = self.engine.dialect.is_disconnect(error, connection, None)
            if lost:
                # Only this one: there are enough retries for all idle connections of a pool.
                pooled.invalidate(error)
            raise self._as_sqlalchemy_error(error, prepared.text, lost=lost) from error
        except _ORDINARY:
            raise
        except BaseException:
            # For example a time limit in the middle of an answer: its rest must not be read by the next user.
            pooled.invalidate()
            raise
        finally:
            pooled.close()

    def _as_sqlalchemy_error(self, error: Exception, statement: str, *, lost: bool = False) -> BaseException:
        return DBAPIError.instance(
            statement,
            None,  # parameters are not for logs
            error,
            self._driver.Error,
            connection_invalidated=lost,
            dialect=self.engine.dialect,
        )


class _Prepared:
    """A compiled statement."""

    def __init__(self, statement: Any, engine: Engine, schemas: Mapping[None, str] | None) -> None:
        dialect = engine.dialect
        schemas_shown = {"schema_translate_map": schemas, "render_schema_translate": True} if schemas else {}
        compiled = statement.compile(dialect=dialect, **schemas_shown)
        if compiled.insert_prefetch or compiled.update_prefetch:
            raise TypeError("the statement has column defaults, which only SQLAlchemy's execution fills in")
        if compiled.post_compile_params:
            raise TypeError("the statement has a list of values, which only SQLAlchemy's execution renders")
        self.text: str = compiled.string
        self._constants: dict[str, Any] = compiled.params
        processors = {
            name: place.type.dialect_impl(dialect).bind_processor(dialect)
            for place, name in compiled.bind_names.items()
        }
        self._processors = {name: process for name, process in processors.items() if process is not None}

    def parameters(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of an execution, converted for the driver."""
        values = {**self._constants, **parameters}
        for name, process in self._processors.items():
            values[name] = process(values[name])
        return values
