"""Statements that go straight to psycopg, past SQLAlchemy's execution of them. May import errors.

A claim and a finish cost nearly half the processor time less so (benchmarks/README.md): what a `Connection`
looks up, converts and offers to listeners for every execution is the same each time. A statement that is
built once is therefore compiled once, and given to the driver on a connection of the engine's pool.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, Executable
from sqlalchemy.exc import DBAPIError

from ..errors import JobHandleError
from .connections import is_ours

_WATCHED = ("before_execute", "after_execute", "before_cursor_execute", "after_cursor_execute")
"""The events that an execution past SQLAlchemy does not have."""


class NotDirect(Exception):
    """What was begun is to be undone, and done by SQLAlchemy."""


_ORDINARY = (JobHandleError, NotDirect)
"""What is raised between statements, and leaves a connection as it was."""


class DirectPsycopg:
    """The straight way to one engine's database."""

    def __init__(self, engine: Engine, schemas: Mapping[None, str] | None) -> None:
        self.engine = engine
        self._schemas = schemas
        self._prepared: dict[Executable, _Prepared] = {}
        self._driver: Any = engine.dialect.dbapi
        self._possible = is_ours(engine)

    @property
    def open(self) -> bool:
        """False where the driver or the engine's maker is another one, or somebody listens to the engine."""
        dispatch = self.engine.dispatch
        return self._possible and not any(getattr(dispatch, name) for name in _WATCHED)

    def rows(self, statement: Executable, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Execute a statement that stands alone; return its rows as the driver does.

        Raises:
            DBAPIError: SQLAlchemy's, as if it had executed the statement.
        """
        prepared = self._prepare(statement)
        with self._driver_connection(prepared) as connection, connection.cursor() as cursor:
            self.engine.dialect.do_execute(cursor, prepared.text, prepared.given(parameters))
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows

    def rows_of_each(
        self,
        statement: Executable,
        each: Iterable[Mapping[str, Any]],
        look: Callable[[list[list[tuple[Any, ...]]]], None],
    ) -> None:
        """Execute a statement for each of several parameters in one transaction, without a wait in between.

        The next parameters are made while the server is busy with those before. `look` is given the rows of
        each before the commit. If it, or what makes the parameters, raises `NotDirect` or an error of ours,
        nothing is written. While they are made the server waits without its limit for idle transactions,
        which does not run in a pipeline: a statement for this locks nothing that somebody else may want. A
        server that is held up, and reads nothing for as long as a silent peer is given, loses the connection.

        Raises:
            NotStraight: see above, or libpq is older than 14 and cannot do without a wait.
            DBAPIError: SQLAlchemy's, as if it had executed the statement.
        """
        if not self._driver.Pipeline.is_supported():
            raise NotDirect
        prepared = self._prepare(statement)
        with self._driver_connection(prepared) as connection, connection.cursor() as cursor:
            cursor.execute("BEGIN")
            with connection.pipeline():
                try:
                    cursors = [self._begun(connection, prepared, parameters) for parameters in each]
                    rows = [one.fetchall() for one in cursors]
                except (self._driver.Error, *_ORDINARY):
                    raise
                except BaseException:
                    connection.close()  # or the end of the pipeline would wait for the server
                    raise
            look(rows)
            cursor.execute("COMMIT")

    def _begun(self, connection: Any, prepared: "_Prepared", parameters: Mapping[str, Any]) -> Any:
        cursor = connection.cursor()
        self.engine.dialect.do_execute(cursor, prepared.text, prepared.given(parameters))
        return cursor

    def _prepare(self, statement: Executable) -> "_Prepared":
        prepared = self._prepared.get(statement)
        if prepared is None:
            prepared = self._prepared[statement] = _Prepared(statement, self.engine, self._schemas)
        return prepared

    @contextmanager
    def _driver_connection(self, prepared: "_Prepared") -> Iterator[Any]:
        """Open a connection of the pool on which each statement stands alone."""
        try:
            pooled: Any = self.engine.raw_connection()
        except self._driver.Error as error:
            raise self._in_sqlalchemys_words(error, prepared.text) from error
        connection = pooled.driver_connection
        try:
            if not connection.autocommit:
                connection.autocommit = True
            yield connection
        except self._driver.Error as error:
            lost = self.engine.dialect.is_disconnect(error, connection, None)
            if lost:
                # This one alone: a verb is repeated often enough for as many idle ones as a pool keeps.
                pooled.invalidate(error)
            raise self._in_sqlalchemys_words(error, prepared.text, lost=lost) from error
        except _ORDINARY:
            raise
        except BaseException:
            # A time limit, say, in the middle of an answer: nobody else must read the rest of it.
            pooled.invalidate()
            raise
        finally:
            pooled.close()

    def _in_sqlalchemys_words(self, error: Exception, statement: str, *, lost: bool = False) -> BaseException:
        return DBAPIError.instance(
            statement,
            None,  # the parameters, which are not for logs
            error,
            self._driver.Error,
            connection_invalidated=lost,
            dialect=self.engine.dialect,
        )


class _Prepared:
    """A statement as the driver takes it."""

    def __init__(self, statement: Any, engine: Engine, schemas: Mapping[None, str] | None) -> None:
        dialect = engine.dialect
        schemas_shown = {"schema_translate_map": schemas, "render_schema_translate": True} if schemas else {}
        compiled = statement.compile(dialect=dialect, **schemas_shown)
        if compiled.insert_prefetch or compiled.update_prefetch:
            raise TypeError("the statement has defaults that SQLAlchemy fills in when it executes it")
        self.text: str = compiled.string
        self._constants: dict[str, Any] = compiled.params
        processors = {
            name: place.type.dialect_impl(dialect).bind_processor(dialect)
            for place, name in compiled.bind_names.items()
        }
        self._processors = {name: process for name, process in processors.items() if process is not None}

    def given(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of an execution."""
        values = {**self._constants, **parameters}
        for name, process in self._processors.items():
            values[name] = process(values[name])
        return values
