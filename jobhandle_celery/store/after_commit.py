"""Do something after the caller's transaction has committed, and only then.

SQLAlchemy's ``after_commit`` says less than its name: it fires when a savepoint is released, and for a
Session that is joined to an outer transaction; and what is raised in it reaches the caller's ``commit()``.
So ids are booked per transaction, a released savepoint hands its own to its parent, and the callback runs
at the end of the root. Whether it truly committed is seen by reading the rows on another connection.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from billiard.exceptions import SoftTimeLimitExceeded
from sqlalchemy import event

from ..errors import ApiUsageError

if TYPE_CHECKING:
    # At run time only for those who have one: the ORM takes longer to import than all of ours.
    from sqlalchemy.orm import Session, SessionTransaction

logger = logging.getLogger(__name__)

Callback = Callable[[list[int]], None]

_Booked = dict[Callback, list[int]]
_booked: "WeakKeyDictionary[SessionTransaction, _Booked]" = WeakKeyDictionary()
_LISTENING = "jobhandle_listening"


def after_commit(session: "Session", job_ids: list[int], callback: Callback) -> None:
    """Call back with these ids once the session's transaction has ended, unless a savepoint took them back.

    Also after a rollback of the root, for its end is all that is known: the callback looks for the rows.
    """
    if not session.info.get(_LISTENING):
        event.listen(session, "after_transaction_end", _on_end)
        event.listen(session, "after_commit", _on_commit)
        session.info[_LISTENING] = True
    current = session.get_nested_transaction() or session.get_transaction()
    if current is None:
        raise AssertionError("a session that has executed a statement has a transaction")
    _booked.setdefault(current, {}).setdefault(callback, []).extend(job_ids)


def _on_commit(session: "Session") -> None:
    # Fires for the innermost transaction, before it ends. A rolled back one never comes here.
    ending = session.get_nested_transaction()
    if ending is None or ending.parent is None:
        return
    for callback, job_ids in _booked.pop(ending, {}).items():
        _booked.setdefault(ending.parent, {}).setdefault(callback, []).extend(job_ids)


def _on_end(session: "Session", transaction: "SessionTransaction") -> None:
    if transaction.parent is not None:
        _booked.pop(transaction, None)
        return
    for callback, job_ids in _booked.pop(transaction, {}).items():
        try:
            callback(job_ids)
        except SoftTimeLimitExceeded:
            raise  # of the job whose body has committed here
        except Exception:
            # The caller's commit has succeeded and must not fail now; the sweep finds the rows due.
            logger.exception("jobs %s were not sent after the commit; the sweep sends them", job_ids)


def session_of(given: Any) -> "Session":
    """Return the session that can be joined.

    Raises:
        ApiUsageError: there is none; it says what to give instead.
    """
    from sqlalchemy.orm import Session, scoped_session

    if isinstance(given, scoped_session):
        given = given()
    if isinstance(given, Session):
        return given
    hint = " Call it inside await session.run_sync(...)." if hasattr(given, "run_sync") else ""
    raise ApiUsageError(f"session: {type(given).__name__} is not a sqlalchemy.orm.Session.{hint}")
