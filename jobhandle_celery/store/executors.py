"""What one connection executes: transitions, inserts and reads, in the way of its database.

The modules that describe them do not ask which database it is.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import cache, partial
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Row,
    Select,
    Table,
    Update,
    func,
    null,
    select,
    true,
    union_all,
    update,
)

from ..schema import job
from .bulk_statements import insert_document, insert_needs, mark_queued, to_document, to_marks
from .call_threads import call_blocking
from .records import PendingMessage
from .statements import IN_ARRAY, Guard, Transition, is_locked_in_order, is_unlocked, params, select_in_order

MAX_PARAMETERS = 500
"""Values in the list of one statement; databases have limits, and SQLite's was once 999."""

ALL_ROWS: Guard = true()


class Executor(ABC):
    """Executes statements on one connection, with the settings as parameters."""

    def __init__(
        self,
        connection: Connection,
        settings: dict[str, Any],
        options: Mapping[str, Any],
        read_outside: Callable[[], AbstractContextManager["Executor"]] | None = None,
    ) -> None:
        """Wrap a connection.

        Args:
            connection: Ours, or the caller's.
            settings: The values of all `setting` parameters.
            options: Execution options by which a statement finds our tables on this connection.
            read_outside: Opens a connection that sees what is committed now, if this one may see an old
            snapshot.
        """
        self.connection = connection
        self.settings = settings
        self._options = options
        self._read_outside = read_outside
        self.unsettled: list[int] = []
        """The ids of rows that have ended here, and on which others depend."""

    def execute(self, statement: Any, parameters: Any = None) -> Any:
        """Execute a statement; a list of parameters must contain the settings already."""
        if not isinstance(parameters, list):
            parameters = self.settings | parameters if parameters else self.settings
        return self.connection.execute(statement, parameters, execution_options=self._options)

    def read_current(self, statement: Any) -> list[Row[Any]]:
        """Return the rows that this transaction sees, then those committed since a caller's snapshot."""
        rows = list(self.execute(statement))
        if self._read_outside is not None:
            rows += call_blocking(self.connection, partial(self._committed, self._read_outside, statement))
        return rows

    def _committed(
        self, read_outside: Callable[[], AbstractContextManager["Executor"]], statement: Any
    ) -> list[Row[Any]]:
        with read_outside() as outside:
            return list(outside.execute(statement))

    def reschedule(self, due: Select[Any], due_at: Any) -> Sequence[Row[Any]]:
        """Set `due_at` of the rows that a select finds, without those that are locked; return these rows."""
        rows: Sequence[Row[Any]] = self.execute(due.with_for_update(skip_locked=True, key_share=True)).all()
        if rows:
            self.execute(update(job).where(job.c.id.in_([row.id for row in rows])).values(due_at=due_at))
        return rows

    @abstractmethod
    def begin_writing(self) -> None:
        """Take the lock that writing needs, where a transaction that has read first may be refused it."""

    @abstractmethod
    def apply(self, transition: Transition, **values: Any) -> Sequence[Row[Any]]:
        """Apply a transition to every row that passes its guards; return the changed rows.

        No row: another process was first, an ordinary result.
        """

    @abstractmethod
    def count_applied(self, transition: Transition, **values: Any) -> int:
        """Apply a transition to any number of rows; return how many changed."""

    @abstractmethod
    def update_unlocked(self, *guards: Guard, values: Mapping[str, Any]) -> None:
        """Update the rows that pass the guards and that no transaction has locked; no event."""

    @abstractmethod
    def lock_in_order(self, *guards: Guard) -> None:
        """Lock the rows that pass the guards, in the order of their ids, for several statements."""

    @abstractmethod
    def update_in_order(self, *guards: Guard, values: Mapping[str, Any]) -> None:
        """Update the rows that pass the guards, and lock them in the order of their ids; no event."""

    @abstractmethod
    def update_returning(self, statement: Update, column: ColumnElement[Any], where: Guard) -> Any:
        """Execute an UPDATE of at most one row, found by `where`; return the column, or None."""

    @abstractmethod
    def rows_of(self, ids: Collection[int], *columns: Column[Any], where: Guard = ALL_ROWS) -> list[Row[Any]]:
        """Return columns of these jobs that pass a guard, which is a constant: the statement is kept."""

    @abstractmethod
    def rows_and_count_of(
        self, ids: Collection[int], *columns: Column[Any], where: Guard
    ) -> tuple[list[Row[Any]], int]:
        """Return columns of these jobs that pass a guard, and the number of these jobs that exist."""

    def filter_ids(self, ids: Collection[int], guard: Guard) -> set[int]:
        """Return the ids of these jobs that pass a guard, a constant."""
        return {row.id for row in self.rows_of(ids, job.c.id, where=guard)}

    def insert_if_absent(self, table: Table, values: Mapping[str, Any]) -> bool:
        """Insert a row; False if its key exists. No error, which would end a transaction on PostgreSQL."""
        absent = self._absent(table, values).returning(*table.primary_key.columns)
        return self.execute(absent).first() is not None

    @abstractmethod
    def _absent(self, table: Table, values: Mapping[str, Any]) -> Any:
        """Return such an insert."""

    def _collect_unsettled(self, transition: Transition, rows: Sequence[Row[Any]]) -> None:
        if transition.ends:
            self.unsettled += [row.id for row in rows if row.unsettled]

    @abstractmethod
    def insert_jobs(self, rows: Sequence[dict[str, Any]], *, of_tree: bool = False) -> Sequence[Row[Any]]:
        """Insert jobs and their events; return those inserted, without those whose task id or key exists.

        With `of_tree` the rows have the columns of a tree, too.
        """

    @abstractmethod
    def insert_needs(self, rows: Sequence[dict[str, Any]]) -> None:
        """Insert rows into `job_need`; a row that exists stays."""

    @abstractmethod
    def mark_queued(self, sent: Sequence[PendingMessage], delay: Callable[[int], timedelta]) -> None:
        """Mark rows that still wait for these messages as Queued; `delay` is that of the next publish."""


class PostgresExecutor(Executor):
    """Each operation is one statement."""

    def begin_writing(self) -> None:
        pass  # no row is locked before it is written

    def apply(self, transition: Transition, **values: Any) -> Sequence[Row[Any]]:
        rows: Sequence[Row[Any]] = self.execute(transition.statement, params(**values)).all()
        self._collect_unsettled(transition, rows)
        return rows

    def count_applied(self, transition: Transition, **values: Any) -> int:
        changed, *unsettled = self.execute(transition.counting_statement, params(**values)).one()
        self.unsettled += (unsettled and unsettled[0]) or []
        return int(changed)

    def update_unlocked(self, *guards: Guard, values: Mapping[str, Any]) -> None:
        self.execute(update(job).where(*guards, is_unlocked(*guards)).values(**values))

    def lock_in_order(self, *guards: Guard) -> None:
        self.execute(select(func.count()).select_from(select_in_order(*guards).subquery()))

    def update_in_order(self, *guards: Guard, values: Mapping[str, Any]) -> None:
        self.execute(update(job).where(*guards, is_locked_in_order(*guards)).values(**values))

    def update_returning(self, statement: Update, column: ColumnElement[Any], where: Guard) -> Any:
        # A second statement could meet a broken connection after the first one is committed.
        return self.execute(statement.returning(column)).scalar()

    def rows_of(self, ids: Collection[int], *columns: Column[Any], where: Guard = ALL_ROWS) -> list[Row[Any]]:
        return list(self.execute(select_of(IN_ARRAY, columns, where), {"ids": list(ids)}))

    def rows_and_count_of(
        self, ids: Collection[int], *columns: Column[Any], where: Guard
    ) -> tuple[list[Row[Any]], int]:
        *rows, count = self.execute(select_and_count(IN_ARRAY, columns, where), {"ids": list(ids)})
        return rows, count[0]

    def _absent(self, table: Table, values: Mapping[str, Any]) -> Any:
        from sqlalchemy.dialects import postgresql  # no other database's dialect is imported

        return postgresql.insert(table).values(**values).on_conflict_do_nothing()

    def insert_jobs(self, rows: Sequence[dict[str, Any]], *, of_tree: bool = False) -> Sequence[Row[Any]]:
        insert = insert_document(of_tree=True) if of_tree else insert_document()
        inserted: Sequence[Row[Any]] = self.execute(insert, to_document(rows)).all()
        return inserted

    def insert_needs(self, rows: Sequence[dict[str, Any]]) -> None:
        self.execute(insert_needs(), {"document": json.dumps(rows)})

    def mark_queued(self, sent: Sequence[PendingMessage], delay: Callable[[int], timedelta]) -> None:
        self.execute(mark_queued(), to_marks(sent, delay))


# Built once: the guards are constants of their modules.
@cache
def select_of(these: Guard, columns: tuple[Column[Any], ...], guard: Guard) -> Any:
    """Return the select of columns of these jobs that pass a guard."""
    return select(*columns).where(these, guard)


@cache
def select_and_count(these: Guard, columns: tuple[Column[Any], ...], guard: Guard) -> Any:
    """Return the select of columns of these jobs that pass a guard, and, in its last row, of their number."""
    count = select(func.count(), *[null()] * (len(columns) - 1)).where(these)
    return union_all(select_of(these, columns, guard), count.select_from(job))
