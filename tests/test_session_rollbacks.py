"""A rolled-back submit leaves nothing behind, also in the handle: its id may become another job's."""

from collections.abc import Callable
from contextlib import suppress

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from jobhandle_celery import Job, JobHandle, JobStatus, NotAttachedError
from tests.job_factory import ADD
from tests.shop import Shop

Undo = Callable[[Shop, JobHandle], None]


def by_rollback(shop: Shop, handle: JobHandle) -> None:
    with Session(shop.engine) as session:
        handle.submit(ADD, session=session)
        session.rollback()


def by_close(shop: Shop, handle: JobHandle) -> None:
    with Session(shop.engine) as session:
        handle.submit(ADD, session=session)


def by_savepoint(shop: Shop, handle: JobHandle) -> None:
    with Session(shop.engine) as session:
        savepoint = session.begin_nested()
        with session.begin_nested():
            handle.submit(ADD, session=session)
        savepoint.rollback()
        session.commit()


def by_exception(shop: Shop, handle: JobHandle) -> None:
    with suppress(ZeroDivisionError), Session(shop.engine) as session, session.begin():
        shop.order(session, 1)
        handle.submit(ADD, session=session)
        _ = 1 / 0


def by_root_of_released_savepoint(shop: Shop, handle: JobHandle) -> None:
    with Session(shop.engine) as session:
        with session.begin_nested(), session.begin_nested():
            handle.submit(ADD, session=session)
        session.rollback()


def by_failed_statement(shop: Shop, handle: JobHandle) -> None:
    with Session(shop.engine) as session:
        shop.order(session, 1)
        handle.submit(ADD, session=session)
        with pytest.raises(IntegrityError):
            shop.order(session, 1)
        session.rollback()


def by_outer_transaction(shop: Shop, handle: JobHandle) -> None:
    """As in test suites: the session's commit releases a savepoint, or does nothing."""
    for mode in ("create_savepoint", "rollback_only"):
        with shop.engine.connect() as connection:
            outer = connection.begin()
            with Session(connection, join_transaction_mode=mode) as session:
                handle.submit(ADD, session=session)
                session.commit()
            outer.rollback()


def by_unique_key(shop: Shop, handle: JobHandle) -> None:
    keyed = Job(task="tests.add", args=[1, 2], unique_key="scan:1")
    with Session(shop.engine) as session:
        first = shop.jobs.handle().submit(keyed, session=session)
        assert handle.submit(keyed, session=session) == first
        session.rollback()


WAYS: list[Undo] = [
    by_rollback,
    by_close,
    by_exception,
    by_savepoint,
    by_root_of_released_savepoint,
    by_failed_statement,
    by_outer_transaction,
    by_unique_key,
]


def test_handle_is_not_attached_after_its_submit_is_rolled_back(shop: Shop) -> None:
    """On SQLite the next job takes the same id, and the handle cancelled that one (fault 50)."""
    for number, undo in enumerate(WAYS, start=1):
        handle = shop.jobs.handle()
        undo(shop, handle)
        other = shop.jobs.handle()
        other.submit(ADD)
        with pytest.raises(NotAttachedError):
            handle.cancel_job()
        assert other.job_status() is JobStatus.QUEUED, undo
        assert shop.sent() == [other.job_id]
        assert (len(shop.jobs.find()), shop.orders()) == (number, []), undo


def test_handle_keeps_its_job_after_commits_and_other_rollbacks(shop: Shop) -> None:
    handle, other = shop.jobs.handle(), shop.jobs.handle()
    with Session(shop.engine) as session:
        with session.begin_nested():
            job_id = handle.submit(ADD, session=session)
        savepoint = session.begin_nested()
        other.submit(ADD, session=session)
        savepoint.rollback()
        session.commit()
        shop.order(session, 1)
        session.rollback()
    assert handle.job_id == job_id
    with shop.engine.connect() as connection, Session(connection) as session:
        outer = connection.begin()
        job_id = handle.submit(ADD, session=session)
        session.commit()
        outer.commit()
        connection.begin().rollback()
    assert handle.job_status() in (JobStatus.SUBMITTED, JobStatus.QUEUED)
    with pytest.raises(NotAttachedError):
        _ = other.job_id


def test_handle_that_has_moved_on_keeps_its_job_at_a_rollback(shop: Shop) -> None:
    handle = shop.jobs.handle()
    there = shop.jobs.handle().submit(ADD)
    assert len(shop.jobs.find()) == 1  # its mark is written, which waits for the session's locks on MariaDB
    with Session(shop.engine) as session:
        handle.submit(ADD, session=session)
        handle.attach(there)
        session.rollback()
    assert handle.job_id == there
