"""Act on the end of the caller's transaction: publish after its commit, detach handles at its rollback.

SQLAlchemy's ``after_commit`` event also fires when a savepoint is released, and for a Session that is joined
to an outer transaction; and an exception in it reaches the caller's ``commit()``. So ids are recorded per
transaction, a released savepoint adds its ids to its parent's, and the callback runs at the end of the root.
It reads the rows on another connection to see whether they are committed.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary, WeakSet

from billiard.exceptions import SoftTimeLimitExceeded
from sqlalchemy import Connection, event

from .. import internal_errors

if TYPE_CHECKING:
    # Importing the ORM takes longer than importing this library; at run time the caller has imported it.
    from sqlalchemy.orm import Session, SessionTransaction

logger = logging.getLogger(__name__)

Callback = Callable[[list[int]], None]


class Detachable(Protocol):
    """A handle, as far as a rollback concerns it."""

    def detach_from(self, job_ids: Collection[int]) -> None:
        """Detach from the job if it is one of these, which were rolled back."""


def uncommitted() -> set[int]:
    """Return the ids of the jobs that were submitted in transactions of this process that have not ended."""
    return {job_id for pending in _pending.values() for job_id in pending.job_ids}


class _Pending:
    """The jobs submitted in one transaction or savepoint, their callbacks and handles."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.job_ids: set[int] = set()
        self.calls: dict[Callback, list[int]] = {}
        self.handles: WeakSet[Detachable] = WeakSet()

    def add(self, other: "_Pending") -> None:
        self.job_ids |= other.job_ids
        self.add_calls(other.calls)
        self.handles |= other.handles

    def add_calls(self, calls: Mapping[Callback, Collection[int]]) -> None:
        for callback, job_ids in calls.items():
            self.calls.setdefault(callback, []).extend(job_ids)

    def roll_back(self) -> None:
        # SQLite reuses the ids of rows that were rolled back.
        for handle in self.handles:
            handle.detach_from(self.job_ids)


_pending: "WeakKeyDictionary[SessionTransaction, _Pending]" = WeakKeyDictionary()
_committed: "WeakKeyDictionary[SessionTransaction, _Pending]" = WeakKeyDictionary()
"""Waits for the end of a root that has committed, according to the session's ``after_commit`` event."""
_outer: WeakKeyDictionary[Connection, list[_Pending]] = WeakKeyDictionary()
"""The jobs of sessions that have ended, while the outer transaction that they joined continues."""
_LISTENING = "jobhandle_listening"


def after_commit(
    session: "Session",
    connection: Connection,
    job_ids: Collection[int],
    calls: Mapping[Callback, Collection[int]],
    handle: Detachable | None = None,
) -> None:
    """Call back with ids of jobs after the session's transaction has committed; else detach the handle.

    Args:
        session: The session whose transaction inserted the rows.
        connection: The session's connection.
        job_ids: The rows that were inserted now.
        calls: What is called when the root transaction ends, each with its ids. If the root has joined an
            outer transaction, the rows may not be committed yet: the callback reads them.
        handle: A handle on a job that was inserted in this transaction, now or before.
    """
    if not session.info.get(_LISTENING):
        event.listen(session, "after_commit", _on_commit)
        event.listen(session, "after_rollback", _on_rollback)
        event.listen(session, "after_transaction_end", _on_end)
        session.info[_LISTENING] = True
    current = _innermost(session)
    if current is None:
        raise AssertionError("a session that has executed a statement has a transaction")
    pending = _pending.setdefault(current, _Pending(connection))
    pending.job_ids.update(job_ids)
    pending.add_calls(calls)
    if handle is not None:
        while current is not None:
            # The job may have been inserted, with its unique key, before the savepoint.
            _pending.setdefault(current, _Pending(connection)).handles.add(handle)
            current = current.parent


def _innermost(session: "Session") -> "SessionTransaction | None":
    return session.get_nested_transaction() or session.get_transaction()


def _on_commit(session: "Session") -> None:
    # Fires for the innermost transaction, before it ends; not for one that is rolled back.
    ending = _innermost(session)
    pending = None if ending is None else _pending.pop(ending, None)
    if ending is None or pending is None:
        return
    if ending.parent is None:
        _committed[ending] = pending
    else:
        _pending.setdefault(ending.parent, _Pending(pending.connection)).add(pending)


def _on_rollback(session: "Session") -> None:
    ending = _innermost(session)
    if ending is not None:
        _roll_back(ending)


def _on_end(session: "Session", transaction: "SessionTransaction") -> None:
    _roll_back(transaction)  # a transaction that is closed fires neither event
    pending = _committed.pop(transaction, None)
    if pending is None:
        return
    if pending.connection.in_transaction():
        _follow(pending)
    for callback, job_ids in pending.calls.items():
        try:
            callback(job_ids)
        except SoftTimeLimitExceeded:
            raise  # of the job whose body has committed here
        except Exception as error:
            # The caller's commit has succeeded and must not fail now; the sweeper publishes the jobs.
            internal_errors.log("sending jobs after a commit", error, f"the sweeper sends them: {job_ids}")


def _roll_back(transaction: "SessionTransaction") -> None:
    pending = _pending.pop(transaction, None)
    if pending is not None:
        pending.roll_back()


def _follow(pending: _Pending) -> None:
    """Detach the handles if the outer transaction is rolled back."""
    connection = pending.connection
    if connection not in _outer:
        event.listen(connection, "commit", _forget_outer)
        event.listen(connection, "rollback", _on_outer_rollback)
        _outer[connection] = []
    _outer[connection].append(pending)


def _forget_outer(connection: Connection) -> None:
    _outer[connection] = []


def _on_outer_rollback(connection: Connection) -> None:
    for pending in _outer[connection]:
        pending.roll_back()
    _forget_outer(connection)
