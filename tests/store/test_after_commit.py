"""A submit that joins the caller's session: its jobs are published once, after the real commit only."""

from collections.abc import Iterator
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from tests.shop import engine_of
from tests.store.harness import Harness, new_job


@pytest.fixture
def engine(harness: Harness) -> Iterator[Engine]:
    """The caller's own engine, not the library's."""
    engine = engine_of(harness.url)
    yield engine
    engine.dispose()


class Caller:
    """A caller's session, and the messages published of the jobs submitted in it."""

    def __init__(self, harness: Harness, session: Session) -> None:
        self.harness = harness
        self.session = session
        self.calls: list[list[int]] = []
        """The ids of each callback."""
        self.sent: list[int] = []
        """Those of them that another connection sees."""

    def submit(self, count: int = 1, **given: Any) -> list[int]:
        jobs = [new_job(**given) for _ in range(count)]
        return [
            job.job_id for job in self.harness.store.inserter.submit_in_session(self.session, jobs, self.send)
        ]

    def send(self, job_ids: list[int]) -> None:
        self.calls.append(list(job_ids))
        self.sent += [message.job_id for message in self.harness.store.outbox.reserve(job_ids)]


@pytest.fixture
def caller(harness: Harness, engine: Engine) -> Iterator[Caller]:
    with Session(engine) as session:
        yield Caller(harness, session)


def remaining(harness: Harness) -> int:
    return sum(harness.store.queries.count_by_status().values())


def test_job_is_published_once_after_the_commit(caller: Caller) -> None:
    first, second = caller.submit(2)
    [third] = caller.submit()
    caller.session.flush()
    assert caller.calls == []
    caller.session.commit()
    assert caller.calls == [[first, second, third]]
    assert caller.sent == [first, second, third]


def test_rolled_back_job_leaves_nothing(caller: Caller) -> None:
    caller.submit()
    caller.session.rollback()
    assert caller.sent == []
    assert remaining(caller.harness) == 0


def test_closed_session_is_a_rolled_back_one(caller: Caller) -> None:
    caller.submit()
    caller.session.close()
    assert caller.sent == []
    assert remaining(caller.harness) == 0


def test_released_savepoint_sends_nothing_until_its_root_commits(caller: Caller) -> None:
    with caller.session.begin_nested():
        [job_id] = caller.submit()
    assert caller.calls == []
    caller.session.commit()
    assert caller.sent == [job_id]
    assert len(caller.calls) == 1


def test_released_savepoint_is_gone_with_its_root(caller: Caller) -> None:
    with caller.session.begin_nested():
        caller.submit()
    caller.session.rollback()
    assert caller.sent == []
    assert remaining(caller.harness) == 0


def test_rolled_back_savepoint_takes_its_jobs_and_no_others(caller: Caller) -> None:
    [before] = caller.submit()
    savepoint = caller.session.begin_nested()
    caller.submit()
    savepoint.rollback()
    [after] = caller.submit()
    caller.session.commit()
    assert caller.sent == [before, after]
    assert remaining(caller.harness) == 2


def test_savepoints_within_savepoints_hand_their_jobs_upwards(caller: Caller) -> None:
    with caller.session.begin_nested():
        [outer] = caller.submit()
        with caller.session.begin_nested():
            [inner] = caller.submit()
        lost = caller.session.begin_nested()
        with caller.session.begin_nested():
            caller.submit()
        lost.rollback()
    assert caller.calls == []
    caller.session.commit()
    assert sorted(caller.sent) == [outer, inner]
    assert remaining(caller.harness) == 2


def test_rolled_back_outer_savepoint_drops_released_inner_one(caller: Caller) -> None:
    outer = caller.session.begin_nested()
    with caller.session.begin_nested():
        caller.submit()
    outer.rollback()
    caller.session.commit()
    assert caller.sent == []
    assert remaining(caller.harness) == 0


def test_commit_with_a_savepoint_still_open_sends_both(caller: Caller) -> None:
    [before] = caller.submit()
    caller.session.begin_nested()
    [within] = caller.submit()
    caller.session.commit()
    caller.session.commit()
    assert sorted(caller.sent) == [before, within]


def test_second_transaction_of_the_same_session_is_its_own(caller: Caller) -> None:
    [first] = caller.submit()
    caller.session.commit()
    caller.submit()
    caller.session.rollback()
    [third] = caller.submit()
    caller.session.commit()
    assert caller.sent == [first, third]
    caller.session.execute(text("SELECT 1"))
    caller.session.commit()
    assert caller.sent == [first, third]


def test_joined_session_sends_nothing_that_is_rolled_back(harness: Harness, engine: Engine) -> None:
    """As in test suites: the session's commit is not the real one."""
    with engine.connect() as connection:
        outer = connection.begin()
        session = Session(connection)
        caller = Caller(harness, session)
        caller.submit()
        session.commit()
        assert caller.sent == []
        outer.rollback()
    assert remaining(harness) == 0


def test_joined_session_leaves_its_jobs_to_the_sweep(harness: Harness, engine: Engine) -> None:
    with engine.connect() as connection:
        outer = connection.begin()
        session = Session(connection, join_transaction_mode="create_savepoint")
        caller = Caller(harness, session)
        [job_id] = caller.submit()
        session.commit()
        assert caller.sent == []
        outer.commit()
    harness.pass_time(minutes=5)
    assert [message.job_id for message in harness.store.outbox.reserve_due(10)] == [job_id]


def test_jobs_submitted_by_a_before_commit_hook_are_published(caller: Caller) -> None:
    job_ids: list[int] = []
    event.listen(caller.session, "before_commit", lambda _: job_ids.extend(caller.submit()))
    caller.session.execute(text("SELECT 1"))
    caller.session.commit()
    assert caller.sent == job_ids
    assert len(job_ids) == 1


def test_failed_statement_takes_the_jobs_with_it(caller: Caller) -> None:
    caller.submit()
    with pytest.raises(DBAPIError):
        caller.session.execute(text("SELECT * FROM no_such_table_of_ours"))
    caller.session.rollback()
    assert caller.sent == []
    [job_id] = caller.submit()
    caller.session.commit()
    assert caller.sent == [job_id]


def test_failed_statement_in_a_savepoint_takes_only_its_own_jobs(caller: Caller) -> None:
    [before] = caller.submit()
    savepoint = caller.session.begin_nested()
    caller.submit()
    with pytest.raises(DBAPIError):
        caller.session.execute(text("SELECT * FROM no_such_table_of_ours"))
    savepoint.rollback()
    caller.session.commit()
    assert caller.sent == [before]
    assert remaining(caller.harness) == 1


def test_commit_of_an_aborted_transaction_sends_nothing(harness: Harness, engine: Engine) -> None:
    """PostgreSQL answers a COMMIT of an aborted transaction with ROLLBACK, and no error."""
    with engine.connect() as connection, Session(connection) as session:
        caller = Caller(harness, session)
        caller.submit()
        with pytest.raises(DBAPIError):
            connection.exec_driver_sql("SELECT * FROM no_such_table_of_ours")
        if engine.dialect.name == "postgresql":
            session.commit()
            connection.commit()
        else:
            session.rollback()
        assert caller.sent == []
    assert remaining(harness) == 0


def test_taken_unique_key_does_not_abort_callers_transaction(caller: Caller) -> None:
    [first] = caller.submit(unique_key="k")
    [again] = caller.submit(unique_key="k")
    assert again == first
    caller.session.commit()
    assert caller.sent == [first]
    [later] = caller.submit(unique_key="k")
    caller.session.commit()
    assert later == first
    assert caller.sent == [first], "that one had been sent before"


def test_two_sessions_at_once_keep_their_jobs_apart(server_harness: Harness) -> None:
    engine = server_harness.database.engine
    with Session(engine) as kept, Session(engine) as undone:
        first, second = Caller(server_harness, kept), Caller(server_harness, undone)
        mine, theirs = first.submit(), second.submit()
        undone.rollback()
        kept.commit()
    assert first.sent == mine
    assert second.sent == []
    assert theirs != mine


def test_time_limit_during_publish_is_raised(harness: Harness, engine: Engine) -> None:
    def send(job_ids: list[int]) -> None:
        raise SoftTimeLimitExceeded(1)

    session = Session(engine)
    [submitted] = harness.store.inserter.submit_in_session(session, [new_job()], send)
    with pytest.raises(SoftTimeLimitExceeded):
        session.commit()
    session.close()
    assert harness.row(submitted.job_id)
