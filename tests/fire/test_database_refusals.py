"""A database that is there and refuses: locked, read-only, stricter than usual, or in a deadlock.

Whoever asks is told, or asked again for; nothing is ever half done.
"""

import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import select, text

from jobhandle_celery.errors import DatabaseUnavailableError
from jobhandle_celery.schema import job
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import Refused, Run, Selection, door
from tests.databases import PostgresqlDatabases, SqliteFiles
from tests.fire.lives import insist
from tests.fire.verbs import READS, SCENES, Ask, left_behind, outcome, plain
from tests.servers import execute
from tests.store.bench import TASK, Bench
from tests.store.judging import legal
from tests.store.racing import race, waiting
from tests.support import eventually

pytestmark = pytest.mark.fire


def refused(bench: Bench, ask: Ask, name: str) -> None:
    """Ask while the database refuses to write: the author is told so, unless it is a mere question."""
    if name in READS:
        ask(bench.store)
        return
    with pytest.raises(DatabaseUnavailableError):
        ask(bench.store)


# SQLite, locked by another process for longer than we wait.

_LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for _ in sys.stdin:
    connection.execute("ROLLBACK" if connection.in_transaction else "BEGIN IMMEDIATE")
    print("done", flush=True)
"""


class Locker:
    """Another process, that takes the write lock of a SQLite file and gives it back."""

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


@pytest.fixture(scope="module")
def common_sqlite_url(sqlite_files: SqliteFiles, tmp_path_factory: pytest.TempPathFactory) -> str:
    return sqlite_files.create(tmp_path_factory.mktemp("fire") / "jobs.sqlite3")


@pytest.fixture(scope="module")
def locker(common_sqlite_url: str) -> Iterator[Locker]:
    locker = Locker(str(Path(str(sqlalchemy.make_url(common_sqlite_url).database))))
    yield locker
    locker.close()


@pytest.mark.parametrize("name", SCENES)
def test_a_locked_file_is_told_and_nothing_is_half_done(
    common_sqlite_url: str, locker: Locker, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    expected = outcome(common_sqlite_url, name)
    monkeypatch.setattr(door, "BUSY_TIMEOUT", 0.05)
    bench = Bench(common_sqlite_url, namespace=str(uuid.uuid4()))
    ask = SCENES[name](bench)
    before = left_behind(bench)
    with locker.locked():
        refused(bench, ask, name)
        assert left_behind(bench) == before
    assert (plain(ask(bench.store)), left_behind(bench)) == expected
    bench.close()


# PostgreSQL.


@pytest.fixture(scope="module")
def common_url(postgresql_databases: PostgresqlDatabases) -> Iterator[str]:
    url = postgresql_databases.create()
    yield url
    postgresql_databases.drop(url)


def configure(databases: PostgresqlDatabases, url: str, setting: str) -> None:
    """Change a setting of a database, for those who connect from now on."""
    execute(databases.server_url, f'ALTER DATABASE "{sqlalchemy.make_url(url).database}" {setting}')


def disconnect_all(databases: PostgresqlDatabases, url: str) -> None:
    which = f"datname = '{sqlalchemy.make_url(url).database}'"
    execute(databases.server_url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {which}")


@pytest.mark.parametrize("name", SCENES)
def test_a_read_only_server_is_told_and_left_when_it_may_be_written_again(
    postgresql_databases: PostgresqlDatabases, common_url: str, name: str
) -> None:
    expected = outcome(common_url, name)
    bench = Bench(common_url, namespace=str(uuid.uuid4()))
    ask = SCENES[name](bench)
    other = Bench(common_url, namespace=bench.settings.namespace)
    before = left_behind(bench)
    try:
        configure(postgresql_databases, common_url, "SET default_transaction_read_only = on")
        disconnect_all(postgresql_databases, common_url)
        refused(bench, ask, name)
        assert left_behind(other) == before
    finally:
        # As after a failover: nobody throws out those who are still connected to the read-only server.
        configure(postgresql_databases, common_url, "RESET default_transaction_read_only")
    assert (plain(ask(bench.store)), left_behind(bench)) == expected
    for one in (bench, other):
        one.close()


@pytest.fixture(scope="module", params=["serializable", "repeatable read"])
def strict_url(postgresql_databases: PostgresqlDatabases, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database whose owner wants it stricter than we need it."""
    url = postgresql_databases.create()
    configure(postgresql_databases, url, f"SET default_transaction_isolation = '{request.param}'")
    yield url
    postgresql_databases.drop(url)


@pytest.mark.parametrize("name", SCENES)
def test_a_stricter_isolation_changes_no_verb(common_url: str, strict_url: str, name: str) -> None:
    assert outcome(strict_url, name) == outcome(common_url, name)


CROWD = 6
JOBS = 12


def test_serialization_failures_under_a_crowd_start_each_job_once(strict_url: str) -> None:
    bench = Bench(strict_url, namespace=str(uuid.uuid4()))
    job_ids = [bench.submit(unique_key=str(number)) for number in range(JOBS)]
    workers = [bench.worker(f"w{number}") for number in range(CROWD)]

    def live(number: int) -> list[Run]:
        won = []
        for job_id in job_ids:
            message = bench.message(job_id)
            key = Run(job_id, message.task_id, 1, str(uuid.uuid4()), workers[number])
            claimed = insist(lambda key=key: bench.store.claim(key, TASK))  # type: ignore[misc]
            if isinstance(claimed, Refused):
                insist(lambda job_id=job_id: bench.store.cancel(job_id, None, terminate=False))  # type: ignore[misc]
                continue
            won.append(key)
            assert insist(lambda key=key: bench.store.finish(key, "1"))  # type: ignore[misc]
        return won

    crowd = race(*(lambda number=number: live(number) for number in range(CROWD)))
    assert sorted(run.job_id for won in crowd for run in won) == job_ids
    for job_id in job_ids:
        events = bench.events(job_id)
        assert bench.status(job_id) is JobStatus.FINISHED
        assert all(legal(before, after) for before, after in pairwise(events)), events
        assert events.count(JobStatus.FINISHED) == 1
    bench.close()


def test_submits_of_one_key_agree_on_one_job_under_a_stricter_isolation(strict_url: str) -> None:
    bench = Bench(strict_url, namespace=str(uuid.uuid4()))
    ids = race(*[lambda: insist(lambda: bench.submit(unique_key="k"))] * CROWD)
    assert len(set(ids)) == 1
    assert bench.store.count_by_status()[JobStatus.SUBMITTED] == 1
    bench.close()


def test_a_verb_that_is_the_victim_of_a_deadlock_is_asked_again(common_url: str) -> None:
    namespace = str(uuid.uuid4())
    bench, beside = (Bench(common_url, namespace=namespace) for _ in range(2))
    first, second = bench.submit(), bench.submit()
    lock = select(job.c.id).with_for_update()
    with ThreadPoolExecutor(1) as pool:
        with beside.door.transaction() as connection:
            connection.execute(text("SET LOCAL deadlock_timeout = '1min'"))  # so that the verb is the victim
            connection.execute(lock.where(job.c.id == second))
            cancelled = pool.submit(bench.store.cancel_selected, Selection(ids=(first, second)))
            eventually(lambda: waiting(bench) == 1)
            connection.execute(lock.where(job.c.id == first))
        assert cancelled.result(timeout=30) == 2
    assert [bench.events(one)[1:] for one in (first, second)] == [[JobStatus.CANCELLED]] * 2
    for one in (bench, beside):
        one.close()
