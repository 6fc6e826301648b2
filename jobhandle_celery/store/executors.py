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
    ARRAY,
    BigInteger,
    BindParameter,
    Column,
    ColumnElement,
    Connection,
    Row,
    Select,
    Table,
    Update,
    any_,
    bindparam,
    delete,
    false,
    func,
    insert,
    select,
    true,
    update,
)

from ..schema import clock, job, job_event, job_need
from .bulk_statements import (
    NEW_ROW,
    NEW_TREE_ROW,
    QUEUED,
    by_task_ids,
    insert_document,
    insert_needs,
    insert_row,
    mark_queued,
    select_inserted,
    to_document,
    to_marks,
)
from .call_threads import aside
from .records import PendingMessage
from .statements import (
    THESE,
    Guard,
    Transition,
    is_locked_in_order,
    is_unlocked,
    params,
    select_in_order,
    select_unlocked,
)
from .transitions import HELD, for_these, grouped, status_allows, unless_expired_before

MOST_PARAMETERS = 500
"""Values in the list of one statement; databases have limits, and SQLite's was once 999."""

_ALL: Guard = true()


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
            rows += aside(self.connection, partial(self._committed, self._read_outside, statement))
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
    def rows_of(self, ids: Collection[int], *columns: Column[Any], where: Guard = _ALL) -> list[Row[Any]]:
        """Return columns of these jobs that pass a guard, which is a constant: the statement is kept."""

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

    def rows_of(self, ids: Collection[int], *columns: Column[Any], where: Guard = _ALL) -> list[Row[Any]]:
        return list(self.execute(_select_of_array(columns, where), {"ids": list(ids)}))

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


class PortableExecutor(Executor):
    """SQLite and MariaDB: each operation is several statements, in a transaction."""

    @property
    def _is_sqlite(self) -> bool:
        return self.connection.dialect.name == "sqlite"

    def begin_writing(self) -> None:
        if self._is_sqlite:
            # A transaction that reads first is "locked" at once when another one has written since.
            self.execute(delete(job).where(false()))

    def apply(self, transition: Transition, **values: Any) -> Sequence[Row[Any]]:
        parameters = params(**values)
        if transition.many and not self._is_sqlite:
            ids = self._lock_in_order(transition.guards, parameters)
        else:
            ids = self.execute(transition.select_ids, parameters).scalars().all()
        rows: list[Row[Any]] = []
        for start in range(0, len(ids), MOST_PARAMETERS):
            these = parameters | {"these": ids[start : start + MOST_PARAMETERS]}
            self.execute(transition.update_rows, these)
            rows += self.execute(transition.select_rows, these)
        self._append_events(rows)
        self._collect_unsettled(transition, rows)
        return rows

    def count_applied(self, transition: Transition, **values: Any) -> int:
        return len(self.apply(transition, **values))

    def update_unlocked(self, *guards: Guard, values: Mapping[str, Any]) -> None:
        if not self._is_sqlite:
            # MariaDB's UPDATE cannot skip locked rows: they are locked by a SELECT that can.
            guards = (job.c.id.in_(self.execute(select_unlocked(*guards)).scalars().all()),)
        self.execute(update(job).where(*guards).values(**values))

    def lock_in_order(self, *guards: Guard) -> None:
        if not self._is_sqlite:
            self._lock_in_order(guards, {})

    def update_in_order(self, *guards: Guard, values: Mapping[str, Any]) -> None:
        if not self._is_sqlite:
            guards = (job.c.id.in_(self._lock_in_order(guards, {})),)
        self.execute(update(job).where(*guards).values(**values))

    def _lock_in_order(self, guards: Sequence[Guard], parameters: Mapping[str, Any]) -> list[int]:
        """Lock the rows that pass the guards in the order of their ids; return these ids (MariaDB).

        They are found first, without a lock: by any other index than that of the ids, MariaDB would lock the
        rows in the order of that index.
        """
        found = self.execute(select(job.c.id).where(*guards).order_by(job.c.id), parameters).scalars().all()
        locked: list[int] = []
        for start in range(0, len(found), MOST_PARAMETERS):
            these = {**parameters, "these": found[start : start + MOST_PARAMETERS]}
            locked += self.execute(select_in_order(THESE, *guards), these).scalars()
        return locked

    def update_returning(self, statement: Update, column: ColumnElement[Any], where: Guard) -> Any:
        if not self.execute(statement).rowcount:
            return None
        return self.execute(select(column).where(where)).scalar()

    def rows_of(self, ids: Collection[int], *columns: Column[Any], where: Guard = _ALL) -> list[Row[Any]]:
        asked, found = list(ids), list[Row[Any]]()
        for start in range(0, len(asked), MOST_PARAMETERS):
            these = {"these": asked[start : start + MOST_PARAMETERS]}
            found += self.execute(_select_of_list(columns, where), these)
        return found

    def _absent(self, table: Table, values: Mapping[str, Any]) -> Any:
        if not self._is_sqlite:
            return insert(table).values(**values).prefix_with("IGNORE")
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table).values(**values).on_conflict_do_nothing()

    def insert_jobs(self, rows: Sequence[dict[str, Any]], *, of_tree: bool = False) -> Sequence[Row[Any]]:
        # The insert does not return which rows it inserted, and only these get an event.
        existing = self.execute(select(job.c.task_id).where(by_task_ids(rows)))
        known, taken = set(existing.scalars()), self._taken_keys(rows)
        new = [row for row in rows if row["task_id"] not in known and row.get("unique_hash") not in taken]
        if not new:
            return []
        empty = NEW_TREE_ROW if of_tree else NEW_ROW
        every = [self.settings | params(**empty | row) for row in new]
        self.execute(_insert_each(self._is_sqlite, of_tree), every)
        inserted: Sequence[Row[Any]] = self.execute(select_inserted(by_task_ids(new))).all()
        self._append_events(inserted)
        return inserted

    def insert_needs(self, rows: Sequence[dict[str, Any]]) -> None:
        self.execute(_insert_each_need(self._is_sqlite), rows)

    def mark_queued(self, sent: Sequence[PendingMessage], delay: Callable[[int], timedelta]) -> None:
        for publish_count, group in grouped(sent, lambda message: message.publish_count + 1):
            due = unless_expired_before(clock(delay(publish_count)))
            values = {**QUEUED, "publish_count": publish_count, "due_at": due}
            self.update_unlocked(status_allows("publish"), ~HELD, for_these(group), values=values)

    def _taken_keys(self, rows: Sequence[dict[str, Any]]) -> set[str]:
        """Return which of these unique keys belong to unfinished jobs.

        On MariaDB only: there an insert that meets one keeps locks, with which a caller's transaction would
        block every other submit.
        """
        hashes = [row["unique_hash"] for row in rows if row.get("unique_hash") is not None]
        if self._is_sqlite or not hashes:
            return set()
        found = select(job.c.unique_hash).where(job.c.unique_hash.in_(hashes))
        return {row.unique_hash for row in self.read_current(found)}

    def _append_events(self, rows: Sequence[Row[Any]]) -> None:
        if rows:
            events = [
                {
                    "job_id": row.id,
                    "attempt": row.attempt,
                    "status_id": row.status_id,
                    "message": row.reason,
                    "actor": row.actor,
                }
                for row in rows
            ]
            self.execute(insert(job_event).values(at=clock()), events)


# Built once: the guards are constants of their modules.


@cache
def _select_of_array(columns: tuple[Column[Any], ...], guard: Guard) -> Any:
    # One parameter: the statement is the same for any number of ids.
    ids: BindParameter[Any] = bindparam("ids", type_=ARRAY(BigInteger))
    return select(*columns).where(job.c.id == any_(ids), guard)


@cache
def _select_of_list(columns: tuple[Column[Any], ...], guard: Guard) -> Any:
    return select(*columns).where(THESE, guard)


@cache
def _insert_each(sqlite: bool, of_tree: bool) -> Any:
    row = insert_row(of_tree=of_tree)
    if sqlite:
        from sqlalchemy.dialects import sqlite as dialect

        return dialect.insert(job).values(**row).on_conflict_do_nothing()
    from sqlalchemy.dialects import mysql

    # Not IGNORE, which would also hide every other error.
    return mysql.insert(job).values(**row).on_duplicate_key_update(id=job.c.id)


@cache
def _insert_each_need(sqlite: bool) -> Any:
    if sqlite:
        from sqlalchemy.dialects import sqlite as dialect

        return dialect.insert(job_need).on_conflict_do_nothing()
    from sqlalchemy.dialects import mysql

    return mysql.insert(job_need).on_duplicate_key_update(job_id=job_need.c.job_id)
