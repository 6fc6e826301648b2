"""A database that answers and rejects: locked, read-only, stricter than usual, or in a deadlock.

A call raises an error or is retried; nothing is half done.
"""

import subprocess
import sys
import uuid
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import pytest
import sqlalchemy
from sqlalchemy import select, text

from jobhandle_celery.errors import DatabaseUnavailableError
from jobhandle_celery.schema import job
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import ClaimRejected, Run, Selection, engine
from tests.databases import MariadbDatabases, PostgresqlDatabases
from tests.faults.lifecycles import retry_until_answered
from tests.faults.store_calls import STORE_CALLS, run_undisturbed
from tests.faults.store_reads import READS
from tests.faults.store_scenes import normalize, remaining_rows, sibling_harness
from tests.rng import stretched
from tests.servers import MariadbServer, execute
from tests.store.assertions import legal
from tests.store.harness import TASK, Harness
from tests.store.racing import race, waiting
from tests.support import eventually

pytestmark = [pytest.mark.faults, pytest.mark.timeout(stretched(900))]


class Scenes:
    """The scene of every store call on one database, called while the database rejects writes and after."""

    def __init__(self, base: Harness) -> None:
        self._url = base.url
        self._harnesses = {name: sibling_harness(base) for name in STORE_CALLS}
        self._asks = {name: STORE_CALLS[name](harness) for name, harness in self._harnesses.items()}
        self._before = {name: remaining_rows(harness) for name, harness in self._harnesses.items()}

    def assert_refused(self, reads: Set[str] = READS.keys()) -> None:
        """Call while the database rejects writes: each call that writes raises."""
        for name in reads:
            self._asks[name](self._harnesses[name].store)
        for name in self._asks.keys() - reads:
            try:
                answer = self._asks[name](self._harnesses[name].store)
            except DatabaseUnavailableError:
                continue
            pytest.fail(f"{name} was not refused: {answer!r}")
        looking = Harness(self._url)  # so that the caller's last connection is the rejected one
        for name, harness in self._harnesses.items():
            there = Harness(self._url, looking.database, namespace=harness.settings.namespace)
            assert remaining_rows(there) == self._before[name], name
        looking.close()

    def assert_granted(self, base: Harness) -> None:
        """Call again: the result is that of a run without any rejection."""
        for name, call in self._asks.items():
            harness = self._harnesses[name]
            assert (normalize(call(harness.store)), remaining_rows(harness)) == run_undisturbed(base, name), (
                name
            )


# SQLite, locked by another process for longer than we wait.

_LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for _ in sys.stdin:
    connection.execute("ROLLBACK" if connection.in_transaction else "BEGIN IMMEDIATE")
    print("done", flush=True)
"""


class Locker:
    """Another process that takes and releases the write lock of a SQLite file."""

    def __init__(self, path: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LOCKER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        self._turn()
        try:
            yield
        finally:
            self._turn()

    def _turn(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def close(self) -> None:
        self._process.communicate(timeout=10)


def test_locked_sqlite_file_is_reported_and_changes_nothing(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_TIMEOUT", 0.05)
    base = Harness(sqlite_url)
    scenes = Scenes(base)
    locker = Locker(str(sqlalchemy.make_url(sqlite_url).database))
    with locker.locked():
        scenes.assert_refused()
    scenes.assert_granted(base)
    locker.close()
    base.close()


# PostgreSQL.


@pytest.fixture(scope="module")
def base(postgresql_databases: PostgresqlDatabases) -> Iterator[Harness]:
    url = postgresql_databases.create()
    base = Harness(url)
    yield base
    base.close()
    postgresql_databases.drop(url)


def configure(databases: PostgresqlDatabases, url: str, setting: str) -> None:
    """Change a setting of a database for new connections."""
    execute(databases.server_url, f'ALTER DATABASE "{sqlalchemy.make_url(url).database}" {setting}')


def test_read_only_server_is_reported_and_left(
    postgresql_databases: PostgresqlDatabases, postgresql_url: str
) -> None:
    base = Harness(postgresql_url)
    scenes = Scenes(base)
    configure(postgresql_databases, postgresql_url, "SET default_transaction_read_only = on")
    postgresql_databases.disconnect(postgresql_url)
    scenes.assert_refused()
    # As after a failover: open connections to the read-only server stay open.
    configure(postgresql_databases, postgresql_url, "RESET default_transaction_read_only")
    scenes.assert_granted(base)
    base.close()


@pytest.fixture(scope="module", params=["serializable", "repeatable read"])
def strict_factory(
    postgresql_databases: PostgresqlDatabases, request: pytest.FixtureRequest
) -> Iterator[Harness]:
    """On a database whose default isolation is stricter than needed."""
    url = postgresql_databases.create()
    configure(postgresql_databases, url, f"SET default_transaction_isolation = '{request.param}'")
    base = Harness(url)
    yield base
    base.close()
    postgresql_databases.drop(url)


@pytest.mark.parametrize("name", STORE_CALLS)
def test_stricter_isolation_changes_no_verb(base: Harness, strict_factory: Harness, name: str) -> None:
    assert run_undisturbed(strict_factory, name) == run_undisturbed(base, name)


CROWD = 6
JOBS = 12


def test_serialization_failures_start_each_job_once(strict_factory: Harness) -> None:
    harness = sibling_harness(strict_factory)
    job_ids = [harness.submit(unique_key=str(number)) for number in range(JOBS)]
    workers = [harness.worker(f"w{number}") for number in range(CROWD)]

    def run_body(number: int) -> list[Run]:
        won = []
        for job_id in job_ids:
            message = harness.message(job_id)
            key = Run(job_id, message.task_id, 1, str(uuid.uuid4()), workers[number])
            claimed = retry_until_answered(lambda key=key: harness.store.runs.claim(key, TASK))  # type: ignore[misc]  # mypy infers no lambda's defaults
            if isinstance(claimed, ClaimRejected):
                cancel = partial(harness.store.control.cancel, job_id, None, terminate=False)
                retry_until_answered(cancel)
                continue
            won.append(key)
            assert retry_until_answered(lambda key=key: harness.store.runs.finish(key, "1"))  # type: ignore[misc]  # mypy infers no lambda's defaults
        return won

    workload = race(*(lambda number=number: run_body(number) for number in range(CROWD)))
    assert sorted(run.job_id for won in workload for run in won) == job_ids
    for job_id in job_ids:
        events = harness.events(job_id)
        assert harness.status(job_id) is JobStatus.FINISHED
        assert all(legal(before, after) for before, after in pairwise(events)), events
        assert events.count(JobStatus.FINISHED) == 1


def test_submits_of_one_key_agree_under_stricter_isolation(strict_factory: Harness) -> None:
    harness = sibling_harness(strict_factory)
    ids = race(*[lambda: retry_until_answered(lambda: harness.submit(unique_key="k"))] * CROWD)
    assert len(set(ids)) == 1
    assert harness.store.queries.count_by_status()[JobStatus.SUBMITTED] == 1


def test_deadlock_victim_is_retried(base: Harness) -> None:
    harness = sibling_harness(base)
    first, second = harness.submit(), harness.submit()
    lock = select(job.c.id).with_for_update()
    with ThreadPoolExecutor(1) as pool:
        with harness.database.transaction() as connection:
            connection.execute(text("SET LOCAL deadlock_timeout = '1min'"))  # the call is the victim
            connection.execute(lock.where(job.c.id == second))
            cancelled = pool.submit(harness.store.control.cancel_selected, Selection(ids=(first, second)))
            eventually(lambda: waiting(harness) == 1)
            connection.execute(lock.where(job.c.id == first))
        assert cancelled.result(timeout=30) == 2
    assert [harness.events(job_id)[1:] for job_id in (first, second)] == [[JobStatus.CANCELLED]] * 2


# MariaDB.


def connection_of(harness: Harness) -> int:
    with harness.database.autocommit() as connection:
        number: int = connection.execute(text("SELECT CONNECTION_ID()")).scalar_one()
        return number


def test_read_only_mariadb_is_reported_and_left(private_mariadb: MariadbServer) -> None:
    url = sqlalchemy.make_url(MariadbDatabases(private_mariadb.url).create())
    # A user whom read-only rejects: administrators may still write.
    execute(private_mariadb.url, f"CREATE USER shop@'127.0.0.1' IDENTIFIED BY '{url.password}'")
    execute(private_mariadb.url, f"GRANT ALL ON `{url.database}`.* TO shop@'127.0.0.1'")
    base = Harness(url.set(username="shop").render_as_string(hide_password=False))
    scenes = Scenes(base)
    execute(private_mariadb.url, "SET GLOBAL read_only = ON")
    before = connection_of(base)
    # MariaDB checks for a taken key before it writes.
    scenes.assert_refused(READS.keys() | {"submit of a key that is taken"})
    # After a failover another server may answer to the next connection.
    assert connection_of(base) != before
    execute(private_mariadb.url, "SET GLOBAL read_only = OFF")
    scenes.assert_granted(base)
    base.close()


def test_server_in_read_only_mode_is_left(mariadb_url: str) -> None:
    # The error of a managed cluster's readers; an ordinary server has no such mode.
    harness = Harness(mariadb_url)
    before = connection_of(harness)
    signal = "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1836, MESSAGE_TEXT = 'Running in read-only mode'"
    with (
        pytest.raises(DatabaseUnavailableError, match="read-only"),
        harness.database.transaction() as connection,
    ):
        connection.execute(text(signal))
    assert connection_of(harness) != before
    harness.close()
