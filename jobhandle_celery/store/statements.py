"""Statements that are built once. May import schema and below.

To build a statement costs SQLAlchemy more time than to execute it. What is executed for every job is
therefore built at its first use and kept: its author writes `given(...)` where a value of the call goes and
`setting(...)` where one of the settings does, in a function under `functools.cache`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from sqlalchemy import (
    BindParameter,
    Column,
    ColumnElement,
    Double,
    bindparam,
    func,
    insert,
    literal,
    literal_column,
    select,
    update,
)

from ..schema import Status, clock, job, job_event
from ..settings import Settings
from ..status import JobStatus


def given(column: Column[Any], name: str | None = None) -> BindParameter[Any]:
    """Return the place of a value that each call gives, by the name of its column or another one."""
    return bindparam(f"given_{name or column.name}", type_=column.type)


def giving(**values: Any) -> dict[str, Any]:
    """Return the values of a call as the parameters of a statement."""
    return {f"given_{name}": value for name, value in values.items()}


_DURATIONS = ("lease", "republish_after", "publish_grace", "unbroken", "pass_interval")

NAMESPACE: BindParameter[str] = bindparam("setting_namespace", type_=job.c.namespace.type)
"""The place of the namespace, which every statement of a store is confined to."""


def setting(name: str) -> BindParameter[float]:
    """Return the place of one of the settings' durations, in seconds."""
    return bindparam(f"setting_{name}", type_=Double())


def ago(name: str) -> BindParameter[float]:
    """Return the place of the same, as so many seconds ago."""
    return bindparam(f"setting_{name}_ago", type_=Double())


def set_values(settings: Settings) -> dict[str, Any]:
    """Return what goes into the places of the settings."""
    values: dict[str, Any] = {NAMESPACE.key: settings.namespace}
    for name in _DURATIONS:
        seconds = getattr(settings, name).total_seconds()
        values |= {setting(name).key: seconds, ago(name).key: -seconds}
    return values


def at(status: JobStatus) -> ColumnElement[JobStatus]:
    """Return a status as part of a statement's text, which spares every execution a parameter."""
    return literal_column(str(status.id), Status())


THESE: ColumnElement[bool] = job.c.id.in_(bindparam("these", expanding=True))


def locking(*guards: ColumnElement[bool]) -> Any:
    """Return a look at the ids of the rows that pass and that nothing has locked; they are locked by it.

    Not by more than an UPDATE of ours needs: a foreign key's check in the caller's transaction is no obstacle
    on PostgreSQL.
    """
    return select(job.c.id).where(*guards).with_for_update(skip_locked=True, key_share=True)


def is_free(*guards: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return the condition of such rows, as part of one statement (PostgreSQL)."""
    return job.c.id.in_(select(locking(*guards).cte("free").c.id))


class Transition:
    """A move as it is written: to every row that passes the guards, and an event for each."""

    def __init__(
        self,
        *guards: ColumnElement[bool],
        to: Mapping[str, Any],
        because: str | ColumnElement[str],
        actor: str | ColumnElement[str],
        skip_locked: bool = False,
    ) -> None:
        """Make one; with `skip_locked` a row that another transaction has locked is left as it is."""
        self._guards = guards
        self._skip_locked = skip_locked
        self._to = to
        self._columns = told(because, actor)

    @cached_property
    def at_once(self) -> Any:
        """All of it in one statement, which saves round trips with the row locked."""
        return with_event(self._changed)

    @cached_property
    def at_once_counted(self) -> Any:
        """The same, of which only the number of rows is wanted."""
        return with_event(self._changed, lambda _: [func.count()])

    @property
    def _changed(self) -> Any:
        guards = [*self._guards, is_free(*self._guards)] if self._skip_locked else self._guards
        return update(job).where(*guards).values(**self._to).returning(*self._columns)

    # In steps, where UPDATE returns nothing (MariaDB), or something else (SQLite 3.40 says of a NULL in
    # RETURNING that it IS NOT NULL). The rows are locked by the look at them, on SQLite by the transaction's
    # beginning: what was decided there is written, and not decided again by a clock that has moved on.

    @cached_property
    def which(self) -> Any:
        """The ids of the rows, which it locks."""
        return (
            locking(*self._guards)
            if self._skip_locked
            else select(job.c.id).where(*self._guards).with_for_update()
        )

    @cached_property
    def change(self) -> Any:
        """The change, of these rows."""
        return update(job).where(THESE).values(**self._to)

    @cached_property
    def look(self) -> Any:
        """What is told of these rows."""
        return select(*self._columns).where(THESE)


def told(
    because: str | ColumnElement[str], actor: str | ColumnElement[str]
) -> tuple[ColumnElement[Any], ...]:
    """Return the columns of a row that its event is made of, and by which others know it."""
    return (
        job.c.id,
        job.c.task_id,
        job.c.task,
        job.c.attempt,
        job.c.status_id,
        _as_column(because).label("told"),
        _as_column(actor).label("actor"),
    )


def with_event(changed: Any, wanted: Callable[[Any], Sequence[ColumnElement[Any]]] | None = None) -> Any:
    """Return a statement that makes a change and appends its event; it returns what the change does.

    Or what is `wanted` of that: each column more costs the driver time for every job.
    """
    moved = changed.cte("moved")
    event = select(moved.c.id, clock(), moved.c.attempt, moved.c.status_id, moved.c.told, moved.c.actor)
    logged = insert(job_event).from_select(
        ["job_id", "at", "attempt", "status_id", "message", "actor"], event
    )
    selected = select(moved) if wanted is None else select(*wanted(moved)).select_from(moved)
    return selected.add_cte(logged.cte("logged"))


def _as_column(value: str | ColumnElement[str]) -> ColumnElement[str]:
    return literal(value) if isinstance(value, str) else value
