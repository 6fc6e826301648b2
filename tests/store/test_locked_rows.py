"""Rows locked by a caller's open transaction: no pass waits for them, and every call has a time limit."""

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import event, select, update

from jobhandle_celery.errors import DatabaseUnavailableError
from jobhandle_celery.schema import clock, job
from jobhandle_celery.schema import sweep as passes
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import Database, Store, engine_maker, retrying
from jobhandle_celery.store.connections import LOCK_WAIT
from jobhandle_celery.sweeper import sweep
from tests.databases import MARIADB_WITH_FAULTS
from tests.faults.store_calls import STORE_CALLS, run_undisturbed
from tests.faults.store_scenes import remaining_rows, sibling_harness
from tests.publishers import Recorder
from tests.store.harness import LAPSE, Harness, insert_within, new_job, uid_of, with_settings

pytestmark = pytest.mark.faults

Lock = Callable[[sqlalchemy.Connection, Sequence[int]], None]


def _for_update(connection: sqlalchemy.Connection, ids: Sequence[int]) -> None:
    for job_id in ids:  # singly: for so few rows MariaDB would scan and lock the whole table
        connection.execute(select(job.c.id).where(job.c.id == job_id).with_for_update())


def _foreign_key(connection: sqlalchemy.Connection, ids: Sequence[int]) -> None:
    for job_id in ids:
        connection.exec_driver_sql(f"INSERT INTO jobhandle_test_order (job_id) VALUES ({job_id})")


LOCKS: dict[str, Lock] = {"for update": _for_update, "foreign key": _foreign_key}


@pytest.fixture
def caller(common_server_url: str) -> Iterator[sqlalchemy.Engine]:
    engine = sqlalchemy.create_engine(common_server_url)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE IF NOT EXISTS jobhandle_test_order "
            "(job_id BIGINT, FOREIGN KEY (job_id) REFERENCES jobhandle_job (id) ON DELETE SET NULL)"
        )
    yield engine
    engine.dispose()


@contextmanager
def locked(caller: sqlalchemy.Engine, lock: Lock, ids: Sequence[int]) -> Iterator[None]:
    with caller.connect() as connection:
        lock(connection, ids)
        try:
            yield
        finally:
            connection.rollback()


def _have_passes_go_on(harness: Harness) -> None:
    """Make leases trusted, and the next pass due."""
    harness.trust_leases()
    with harness.database.transaction() as connection:
        mine = passes.c.namespace == harness.settings.namespace
        an_interval_ago = clock(-1.1 * harness.settings.pass_interval)
        connection.execute(update(passes).where(mine).values(last_pass_at=an_interval_ago))


Impatient = Callable[..., Store]


@pytest.fixture(scope="module")
def impatient() -> Iterator[Impatient]:
    """Give a harness a store with a short lock timeout, where a wait is an error: `impatient(harness)`."""
    databases: dict[tuple[str, int], Database] = {}

    def store(harness: Harness, seconds: int = 1) -> Store:
        found = databases.get((harness.url, seconds))
        if found is None:
            found = databases[harness.url, seconds] = Database(engine_maker(harness.url), harness.settings)
            event.listen(found.engine, "connect", at_once(found.dialect, seconds))
        return Store(with_settings(found, harness.settings))

    yield store
    for database in databases.values():
        database.close()


def at_once(dialect: str, seconds: int) -> Callable[[Any, Any], None]:
    def connected(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            if dialect == "postgresql":
                cursor.execute("SET lock_timeout = '20ms'")
            else:
                cursor.execute(f"SET innodb_lock_wait_timeout = {seconds}")

    return connected


def test_every_session_has_a_bound_for_locks(server_harness: Harness) -> None:
    """PostgreSQL's own default is none, MariaDB's is 50 s (fault 44)."""
    for way in (server_harness.database.autocommit, server_harness.database.transaction):
        with way() as connection:
            if server_harness.database.dialect == "postgresql":
                assert connection.connection.exec_driver_sql("SHOW lock_timeout").scalar() == f"{LOCK_WAIT}s"
            else:
                found = connection.connection.exec_driver_sql("SELECT @@innodb_lock_wait_timeout").scalar()
                assert found == LOCK_WAIT


@pytest.mark.parametrize("lock", LOCKS)
def test_pass_waits_for_no_row(
    server_harness: Harness,
    impatient: Impatient,
    caller: sqlalchemy.Engine,
    lock: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mutant 21: a caller's open transaction stops every worker's sweep (fault 44, promises 1 and 4)."""
    monkeypatch.setattr(retrying, "_RETRIES_FOR", 0.0)
    harness, recorder = server_harness, Recorder(depth=1000)
    reported: list[Any] = []
    store = impatient(harness)

    def pair(make: Callable[[], int]) -> tuple[int, int]:
        return make(), make()

    lost = harness.worker()
    due = pair(lambda: harness.submit(unique_key=str(uuid.uuid4())))
    late = pair(lambda: harness.place(JobStatus.QUEUED, queue="q").job_id)
    expired = pair(lambda: harness.submit(expires=timedelta(minutes=1)))
    cancelled = pair(lambda: harness.place(JobStatus.QUEUED).job_id)
    for job_id in cancelled:
        harness.store.control.cancel(job_id, None, terminate=False)
    running = pair(lambda: harness.run(harness.submit(), lost).job_id)
    harness.pass_time(seconds=LAPSE + 3600)
    _have_passes_go_on(harness)
    pairs = [due, late, expired, cancelled, running]

    with locked(caller, LOCKS[lock], [first for first, _ in pairs]):
        assert sweep(store, recorder, reported.append)  # type: ignore[arg-type]  # a double
        # The unlocked rows are processed.
        assert due[1] in recorder.published
        assert harness.row(late[1])["republish_deferrals"] == 1
        assert harness.status(expired[1]) is JobStatus.CANCELLED
        assert harness.status(running[1]) is JobStatus.ERROR
        assert {cancelled[1], running[1]} <= {job.job_id for job in reported}
    harness.pass_time(seconds=120)
    _have_passes_go_on(harness)
    assert sweep(store, recorder, reported.append)  # type: ignore[arg-type]
    assert due[0] in recorder.published
    assert harness.row(late[0])["republish_deferrals"] >= 1
    assert harness.status(expired[0]) is JobStatus.CANCELLED
    assert harness.status(running[0]) is JobStatus.ERROR
    assert {cancelled[0], running[0]} <= {job.job_id for job in reported}
    assert harness.store.leases.reap(uid_of(lost)) == []


def test_marks_and_deferrals_of_a_pass_wait_for_no_row(
    server_harness: Harness, impatient: Impatient, caller: sqlalchemy.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row locked between its reservation and its mark stays due (fault 44)."""
    monkeypatch.setattr(retrying, "_RETRIES_FOR", 0.0)
    store = impatient(server_harness)
    ids = [server_harness.submit() for _ in range(4)]
    server_harness.pass_time(minutes=2)
    messages = {message.job_id: message for message in store.outbox.reserve_due(10)}
    with locked(caller, _for_update, ids[::2]):
        store.outbox.mark_queued([messages[job_id] for job_id in ids[:2]])
        store.outbox.defer_unsendable([messages[job_id] for job_id in ids[2:]], "refused")
    assert [server_harness.status(job_id) for job_id in ids[:2]] == [JobStatus.SUBMITTED, JobStatus.QUEUED]
    assert [server_harness.row(job_id)["publish_count"] for job_id in ids[2:]] == [0, 1]


def test_foreign_key_in_an_open_transaction_holds_up_no_run(
    server_harness: Harness, caller: sqlalchemy.Engine
) -> None:
    """On PostgreSQL; MariaDB's foreign keys take a lock that blocks every update (fault 44)."""
    if server_harness.database.engine.dialect.name != "postgresql":
        pytest.skip("PostgreSQL has a weaker lock for foreign keys")
    job_id = server_harness.submit()
    with locked(caller, _foreign_key, [job_id]):
        run = server_harness.run(job_id)
        assert server_harness.store.control.set_message(job_id, "half way", None, run) == ""
        assert server_harness.store.runs.finish(run, "1")


@pytest.mark.parametrize("common_server_url", MARIADB_WITH_FAULTS[1:], indirect=True)
@pytest.mark.parametrize("name", STORE_CALLS)
def test_operation_on_locked_rows_is_bounded(
    server_harness: Harness,
    impatient: Impatient,
    caller: sqlalchemy.Engine,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It skips the row, or raises; once the row is free it does its work (fault 44)."""
    factory = sibling_harness(server_harness)
    ask = STORE_CALLS[name](factory)
    store = impatient(factory, 0)
    here = select(job.c.id).where(job.c.namespace == factory.settings.namespace)
    with caller.connect() as connection:
        connection.execute(here.with_for_update()).all()
        with monkeypatch.context() as patched:
            patched.setattr(retrying, "_RETRIES_FOR", 0.0)
            try:
                ask(store)
            except DatabaseUnavailableError:
                refused = True
            else:
                refused = False
        connection.rollback()
    if refused:
        ask(store)
        assert remaining_rows(factory) == run_undisturbed(server_harness, name)[1]


def test_unique_key_that_is_taken_holds_up_no_submit(mariadb_url: str, impatient: Impatient) -> None:
    """An open session on MariaDB kept next-key locks, and all inserts waited (fault 47)."""
    harness = Harness(mariadb_url)
    job_id = harness.submit(unique_key="k")
    engine = sqlalchemy.create_engine(mariadb_url)
    store = impatient(harness)
    with engine.begin() as connection:
        connection.execute(select(job.c.id)).all()  # takes its snapshot
        [first, second] = insert_within(
            harness.store, connection, [new_job(unique_key="k"), new_job(unique_key="another")]
        )
        assert (first.job_id, first.fresh) == (job_id, False)
        for number in range(20):
            store.inserter.submit([new_job(unique_key=f"{number}"), new_job()])
        run = harness.run(job_id)
        assert store.runs.finish(run, "1")
    assert second.fresh
    engine.dispose()
    harness.close()
