"""Statements through psycopg directly: when they are used, and that their results are SQLAlchemy's."""

import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import (
    Integer,
    Text,
    bindparam,
    cast,
    create_engine,
    event,
    func,
    insert,
    literal,
    select,
    text,
)
from sqlalchemy.exc import DataError, IntegrityError, OperationalError

from jobhandle_celery.schema import job, job_event, job_status
from jobhandle_celery.settings import Settings
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import Database, engine_maker
from jobhandle_celery.store.direct_psycopg import DirectPsycopg
from tests.databases import PostgresqlDatabases
from tests.servers import execute
from tests.store.harness import GRACE, Harness, about, alike, new_job, through
from tests.support import eventually


@pytest.fixture
def database(postgresql_url: str) -> Iterator[Database]:
    """A database whose engine no other test uses."""
    database = Database(engine_maker(postgresql_url), Settings())
    yield database
    database.close()


@pytest.fixture
def direct(database: Database) -> DirectPsycopg:
    return DirectPsycopg(database.engine, None)


def backend(direct: DirectPsycopg) -> int:
    return int(direct.rows(select(func.pg_backend_pid()), {})[0][0])


def a_life(harness: Harness) -> list[JobStatus]:
    job_id = harness.submit()
    harness.store.runs.finish(harness.run(job_id), "1")
    return harness.events(job_id)


LIFE = [JobStatus.SUBMITTED, JobStatus.RUNNING, JobStatus.FINISHED]


def test_submit_claim_and_finish_are_executed_directly(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = through(harness, monkeypatch)
    assert a_life(harness) == LIFE
    assert gone == [harness.database.engine.dialect.name == "postgresql"] * 3


EVERYTHING: dict[str, Any] = {
    "args": '["näme", 1]',
    "kwargs": '{"size": 96}',
    "username": "ann",
    "groupname": "lab",
    "message": "50 % of 'it'",
    "meta": '{"order": 7}',
    "queue": "images",
    "routing": '{"exchange": "x"}',
    "priority": 3,
    "time_limit": 600.5,
    "soft_time_limit": 540.0,
    "max_attempts": 2,
}


@pytest.mark.parametrize("given", [{}, EVERYTHING, {"held": True}], ids=["little", "everything", "held"])
def test_single_job_gets_the_same_row_as_one_of_many(harness: Harness, given: dict[str, Any]) -> None:
    alone = harness.submit(**given)
    crowd = [job.job_id for job in harness.store.inserter.submit([new_job(**given), new_job(**given)])]
    rows = [harness.row(job_id) for job_id in (alone, *crowd)]
    waits = [row["due_at"] and row["due_at"] - row["submitted"] for row in rows]
    assert all(wait is None if given.get("held") else about(wait, GRACE) for wait in waits)
    for row in rows:
        for own in ("id", "task_id", "submitted", "due_at"):
            del row[own]
    assert alike(rows)
    assert rows[0].items() >= {name: value for name, value in given.items() if name != "held"}.items()
    events = [
        [(event.status, event.message, event.actor) for event in harness.store.queries.events(job_id)]
        for job_id in crowd
    ]
    assert (
        [(event.status, event.message, event.actor) for event in harness.store.queries.events(alone)]
        == events[0]
        == events[1]
    )


def test_single_job_with_taken_key_is_found(harness: Harness) -> None:
    first = harness.submit(unique_key="k")
    [second] = harness.store.inserter.submit([new_job(unique_key="k")])
    assert (second.job_id, second.fresh) == (first, False)


def test_engine_with_listeners_is_not_bypassed(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness(postgresql_url)
    gone, heard = through(harness, monkeypatch), list[str]()
    many = through(harness, monkeypatch, "execute_each_directly")
    event.listen(harness.database.engine, "before_cursor_execute", lambda *given: heard.append(given[2]))
    assert a_life(harness) == LIFE
    assert gone == [False] * 3
    assert sum("UPDATE jobhandle_job " in statement for statement in heard) == 2
    heard.clear()
    harness.store.inserter.submit([new_job(), new_job()])
    assert many == [False]
    assert sum("INSERT INTO jobhandle_job " in statement for statement in heard) == 1
    harness.close()


def test_callers_engine_is_not_bypassed(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = create_engine(postgresql_url)
    harness = Harness(postgresql_url, Database(lambda: theirs, Settings()))
    gone, many = through(harness, monkeypatch), through(harness, monkeypatch, "execute_each_directly")
    assert a_life(harness) == LIFE
    assert gone == [False] * 3
    harness.store.inserter.submit([new_job(), new_job()])
    assert many == [False]
    theirs.dispose()


def test_direct_statement_names_its_schema(postgresql_databases: PostgresqlDatabases) -> None:
    url = postgresql_databases.create()
    with (made := create_engine(url)).begin() as connection:
        connection.execute(text("CREATE SCHEMA shop"))
    made.dispose()
    database = Database(engine_maker(url), Settings(schema="shop"))
    with database.transaction() as connection:
        job_status.create(connection.connection)
    assert database.execute_directly(select(func.count()).select_from(job_status), {}) == [(9,)]
    database.close()
    postgresql_databases.drop(url)


def test_values_are_converted_as_their_columns_say(direct: DirectPsycopg) -> None:
    given = bindparam("given", type_=job.c.status_id.type)
    assert direct.rows(select(given), {"given": JobStatus.QUEUED}) == [(JobStatus.QUEUED.id,)]
    assert direct.rows(select(literal(7, Integer), literal("100 %")), {}) == [(7, "100 %")]


def test_statement_with_defaults_of_its_table_is_refused(direct: DirectPsycopg) -> None:
    with pytest.raises(TypeError, match="defaults"):
        direct.rows(insert(job).values(task="t").returning(job.c.id), {})


def test_direct_error_is_sqlalchemys_without_parameters(direct: DirectPsycopg) -> None:
    number = cast(bindparam("given", type_=Text()), Integer)
    with pytest.raises(DataError) as caught:
        direct.rows(select(number), {"given": "hunter2"})
    assert not caught.value.connection_invalidated
    assert caught.value.params is None
    orphan = insert(job_event).values(
        job_id=0, at=func.now(), attempt=0, status_id=JobStatus.QUEUED, message="", actor=""
    )
    with pytest.raises(IntegrityError):
        direct.rows(orphan.returning(job_event.c.id), {})
    assert backend(direct)


def test_connection_that_the_server_has_ended_is_not_used_again(
    postgresql_url: str, direct: DirectPsycopg
) -> None:
    ended = backend(direct)
    execute(postgresql_url, f"SELECT pg_terminate_backend({ended})")
    with pytest.raises(OperationalError) as caught:
        backend(direct)
    assert caught.value.connection_invalidated
    assert backend(direct) != ended


def test_operation_survives_a_pool_of_ended_connections(postgresql_url: str) -> None:
    harness = Harness(postgresql_url)
    run = harness.run(harness.submit())
    engine = harness.database.engine
    idle = [engine.connect() for _ in range(engine.pool.size())]  # type: ignore[attr-defined]  # a QueuePool
    for connection in idle:
        connection.close()
    mine = "datname = current_database() AND pid <> pg_backend_pid()"
    execute(postgresql_url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {mine}")
    assert harness.store.runs.finish(run, "1")
    harness.close()


def test_unreachable_server_is_sqlalchemys_error() -> None:
    unreachable = engine_maker("postgresql://127.0.0.1:1/shop")()
    with pytest.raises(OperationalError) as caught:
        DirectPsycopg(unreachable, None).rows(select(literal(1)), {})
    assert not caught.value.connection_invalidated  # no connection was made: do not retry


class Interrupted(Exception):
    """Raised by a signal handler in the middle of a call, as a soft time limit is."""


def test_unread_answer_is_discarded(
    postgresql_url: str, direct: DirectPsycopg, caplog: pytest.LogCaptureFixture
) -> None:
    before = backend(direct)
    asleep = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"

    def interrupt(*_: Any) -> None:
        raise Interrupted

    former = signal.signal(signal.SIGUSR1, interrupt)
    main = threading.main_thread().ident
    assert main is not None

    def interrupt_it_asleep() -> None:
        eventually(lambda: execute(postgresql_url, asleep))
        signal.pthread_kill(main, signal.SIGUSR1)

    other = threading.Thread(target=interrupt_it_asleep)
    other.start()
    try:
        with pytest.raises(Interrupted):
            direct.rows(select(func.pg_sleep(30), literal("late")), {})
    finally:
        other.join()
        signal.signal(signal.SIGUSR1, former)
    assert backend(direct) != before
    assert caplog.messages == []  # closed at once, not by the pool at its next use


def test_threads_share_only_compiled_statements(direct: DirectPsycopg) -> None:
    mine = bindparam("mine", type_=Integer())
    statement = select(mine, func.pg_sleep(0.01))
    wrong: list[Any] = []

    def ask(number: int) -> None:
        for _ in range(20):
            rows = direct.rows(statement, {"mine": number})
            if rows[0][0] != number:
                wrong.append(rows)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
