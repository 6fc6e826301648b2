"""Statements that go straight to psycopg, past SQLAlchemy's execution of them. Knows nothing of jobs.

A claim and a finish cost two thirds less processor time so: what a `Connection` looks up, converts and offers
to listeners for every execution is the same each time. A statement that is built once is therefore compiled
once, and given to the driver on a connection of the engine's pool.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine, Executable
from sqlalchemy.exc import DBAPIError

from .connections import is_ours

_WATCHED = ("before_execute", "after_execute", "before_cursor_execute", "after_cursor_execute")
"""The events that an execution past SQLAlchemy does not have."""


class Straight:
    """The straight way to one engine's database."""

    def __init__(self, engine: Engine, schemas: Mapping[None, str] | None) -> None:
        self._engine = engine
        self._schemas = schemas
        self._prepared: dict[Executable, _Prepared] = {}
        self._driver: Any = engine.dialect.dbapi
        self._possible = engine.driver == "psycopg"

    @property
    def open(self) -> bool:
        """False where the driver is another one, or somebody listens to what the engine executes."""
        dispatch = self._engine.dispatch
        return self._possible and not any(getattr(dispatch, name) for name in _WATCHED)

    def rows(self, statement: Executable, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]] | None:
        """Execute a statement that stands alone; return its rows as the driver does.

        None, and nothing was executed: the connection is one that an engine of somebody else's has made.

        Raises:
            DBAPIError: SQLAlchemy's, as if it had executed the statement.
        """
        prepared = self._prepared.get(statement)
        if prepared is None:
            prepared = self._prepared[statement] = _Prepared(statement, self._engine, self._schemas)
        try:
            pooled: Any = self._engine.raw_connection()
        except self._driver.Error as error:
            raise self._in_sqlalchemys_words(error, prepared.text) from error
        connection = pooled.driver_connection
        try:
            if not is_ours(pooled.info):
                self._possible = False
                return None
            if not connection.autocommit:
                connection.autocommit = True
            with connection.cursor() as cursor:
                self._engine.dialect.do_execute(cursor, prepared.text, prepared.given(parameters))
                rows: list[tuple[Any, ...]] = cursor.fetchall()
                return rows
        except self._driver.Error as error:
            lost = self._engine.dialect.is_disconnect(error, connection, None)
            if lost:
                # This one alone: a verb is repeated often enough for as many idle ones as a pool keeps.
                pooled.invalidate(error)
            raise self._in_sqlalchemys_words(error, prepared.text, lost=lost) from error
        except BaseException:
            # A time limit, say, in the middle of an answer: nobody else must read the rest of it.
            pooled.invalidate()
            raise
        finally:
            pooled.close()

    def _in_sqlalchemys_words(self, error: Exception, statement: str, *, lost: bool = False) -> BaseException:
        return DBAPIError.instance(
            statement,
            None,
            error,
            self._driver.Error,
            hide_parameters=True,
            connection_invalidated=lost,
            dialect=self._engine.dialect,
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
