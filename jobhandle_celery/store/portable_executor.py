"""Executes operations on SQLite and MariaDB."""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from functools import cache
from typing import Any

from sqlalchemy import Column, ColumnElement, Row, Table, Update, delete, false, insert, select, update

from ..batching import slices
from ..schema import clock, job, job_event, job_need
from .bulk_statements import NEW_ROW, NEW_TREE_ROW, QUEUED, by_task_ids, insert_row, select_inserted
from .executors import ALL_ROWS, MAX_PARAMETERS, Executor, select_and_count, select_of
from .records import PendingMessage
from .statements import THESE, Guard, Transition, params, select_in_order, select_unlocked
from .transitions import WAITING_WITHOUT_TIME, for_these, grouped, status_allows, unless_expired_before


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
            ids = self._lock_in_order(transition.guards, parameters, transition.most)
        else:
            ids = self.execute(transition.select_ids, parameters).scalars().all()
        rows: list[Row[Any]] = []
        for part in slices(ids, MAX_PARAMETERS):
            these = parameters | {"these": part}
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

    def _lock_in_order(
        self, guards: Sequence[Guard], parameters: Mapping[str, Any], most: int | None = None
    ) -> list[int]:
        """Lock the rows that pass the guards in the order of their ids; return these ids (MariaDB).

        They are found first, without a lock: by any other index than that of the ids, MariaDB would lock the
        rows in the order of that index.
        """
        ids = select(job.c.id).where(*guards).order_by(job.c.id).limit(most)
        found = self.execute(ids, parameters).scalars().all()
        locked: list[int] = []
        for part in slices(found, MAX_PARAMETERS):
            these = {**parameters, "these": part}
            locked += self.execute(select_in_order(THESE, *guards), these).scalars()
        return locked

    def update_returning(self, statement: Update, column: ColumnElement[Any], where: Guard) -> Any:
        if not self.execute(statement).rowcount:
            return None
        return self.execute(select(column).where(where)).scalar()

    def rows_of(self, ids: Collection[int], *columns: Column[Any], where: Guard = ALL_ROWS) -> list[Row[Any]]:
        statement = select_of(THESE, columns, where)
        return [
            row for part in slices(ids, MAX_PARAMETERS) for row in self.execute(statement, {"these": part})
        ]

    def rows_and_count_of(
        self, ids: Collection[int], *columns: Column[Any], where: Guard
    ) -> tuple[list[Row[Any]], int]:
        found, total = list[Row[Any]](), 0
        for part in slices(ids, MAX_PARAMETERS):
            *rows, count = self.execute(select_and_count(THESE, columns, where), {"these": part})
            found += rows
            total += count[0]
        return found, total

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
            self.update_unlocked(
                status_allows("publish"), ~WAITING_WITHOUT_TIME, for_these(group), values=values
            )

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
