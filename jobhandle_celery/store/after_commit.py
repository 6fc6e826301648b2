"""Act on the end of the caller's transaction: publish after its commit, detach handles at its rollback.

SQLAlchemy's ``after_commit`` says less than its name: it fires when a savepoint is released, and for a
Session that is joined to an outer transaction; and what is raised in it reaches the caller's ``commit()``.
So ids are booked per transaction, a released savepoint hands its own to its parent, and the callback runs
at the end of the root. Whether it truly committed is seen by reading the rows on another connection.
"""

import logging
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary, WeakSet

from billiard.exceptions import SoftTimeLimitExceeded
from sqlalchemy import Connection, event

from .. import internal_errors

if TYPE_CHECKING:
    # At run time only for those who have one: the ORM takes longer to import than all of ours.
    from sqlalchemy.orm import Session, SessionTransaction

logger = logging.getLogger(__name__)

Callback = Callable[[list[int]], None]


class Attached(Protocol):
    """Something that knows a job by its id: a handle."""

    def detach_from(self, job_ids: Collection[int]) -> None:
        """Forget the job if it is one of these, which were rolled back."""


class _Booked:
    """What was submitted in one transaction or savepoint, and the handles that know of it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.calls: dict[Callback, list[int]] = {}
        self.handles: WeakSet[Attached] = WeakSet()

    def add(self, other: "_Booked") -> None:
        for callback, job_ids in other.calls.items():
            self.calls.setdefault(callback, []).extend(job_ids)
        self.handles |= other.handles

    def roll_back(self) -> None:
        # SQLite gives the ids of what was rolled back to the next jobs.
        job_ids = {job_id for ids in self.calls.values() for job_id in ids}
        for handle in self.handles:
            handle.detach_from(job_ids)


_booked: "WeakKeyDictionary[SessionTransaction, _Booked]" = WeakKeyDictionary()
_committed: "WeakKeyDictionary[SessionTransaction, _Booked]" = WeakKeyDictionary()
"""What waits for the end of a root that has committed, as far as its session knows."""
_outer: WeakKeyDictionary[Connection, list[_Booked]] = WeakKeyDictionary()
"""The same of sessions that are over, while the transaction that they had joined goes on."""
_LISTENING = "jobhandle_listening"


def after_commit(
    session: "Session",
    connection: Connection,
    job_ids: list[int],
    callback: Callback,
    handle: Attached | None = None,
) -> None:
    """Call back with these ids after the session's transaction has committed; else detach the handle.

    Args:
        session: Whose transaction the rows were written in.
        connection: The session's own, on which they were written.
        job_ids: Those that were inserted now.
        callback: Called at the end of the root, also of one that has joined an outer transaction, whose end
            is not known: it looks for the rows.
        handle: Knows one of the jobs that were inserted in this transaction, now or before.
    """
    if not session.info.get(_LISTENING):
        event.listen(session, "after_commit", _on_commit)
        event.listen(session, "after_rollback", _on_rollback)
        event.listen(session, "after_transaction_end", _on_end)
        session.info[_LISTENING] = True
    current = _innermost(session)
    if current is None:
        raise AssertionError("a session that has executed a statement has a transaction")
    booked = _booked.setdefault(current, _Booked(connection))
    booked.calls.setdefault(callback, []).extend(job_ids)
    if handle is not None:
        while current is not None:
            # The job may have been inserted, with its unique key, before a savepoint was set.
            _booked.setdefault(current, _Booked(connection)).handles.add(handle)
            current = current.parent


def _innermost(session: "Session") -> "SessionTransaction | None":
    return session.get_nested_transaction() or session.get_transaction()


def _on_commit(session: "Session") -> None:
    # Fires for the innermost transaction, before it ends. A rolled back one never comes here.
    ending = _innermost(session)
    booked = None if ending is None else _booked.pop(ending, None)
    if ending is None or booked is None:
        return
    if ending.parent is None:
        _committed[ending] = booked
    else:
        _booked.setdefault(ending.parent, _Booked(booked.connection)).add(booked)


def _on_rollback(session: "Session") -> None:
    ending = _innermost(session)
    if ending is not None:
        _roll_back(ending)


def _on_end(session: "Session", transaction: "SessionTransaction") -> None:
    _roll_back(transaction)  # should neither a commit nor a rollback have been told: it was closed
    booked = _committed.pop(transaction, None)
    if booked is None:
        return
    if booked.connection.in_transaction():
        _follow(booked)
    for callback, job_ids in booked.calls.items():
        try:
            callback(job_ids)
        except SoftTimeLimitExceeded:
            raise  # of the job whose body has committed here
        except Exception as error:
            # The caller's commit has succeeded and must not fail now; the sweep finds the rows due.
            internal_errors.log("sending jobs after a commit", error, f"the sweep sends them: {job_ids}")


def _roll_back(transaction: "SessionTransaction") -> None:
    booked = _booked.pop(transaction, None)
    if booked is not None:
        booked.roll_back()


def _follow(booked: _Booked) -> None:
    """Detach the handles should the outer transaction be rolled back as a whole."""
    connection = booked.connection
    if connection not in _outer:
        event.listen(connection, "commit", _forget_outer)
        event.listen(connection, "rollback", _on_outer_rollback)
        _outer[connection] = []
    _outer[connection].append(booked)


def _forget_outer(connection: Connection) -> None:
    _outer[connection] = []


def _on_outer_rollback(connection: Connection) -> None:
    for booked in _outer[connection]:
        booked.roll_back()
    _forget_outer(connection)
