"""MariaDB: its tables, every verb against what SQLite makes of it, and connections that the server kills.

The store's own suite is the judge of the verbs; this is what it does not see, and what breaks.
"""

import contextlib
import multiprocessing
import os
import uuid
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier

import pytest
import sqlalchemy
from sqlalchemy import Engine, select

from jobhandle_celery import migrations
from jobhandle_celery.schema import STATUS_ROWS, job_status
from jobhandle_celery.store import Door, engine_maker
from tests.databases import SqliteFiles
from tests.fire.lives import live_through
from tests.fire.mariadb import MariadbDatabases, own_mariadb
from tests.fire.verbs import SCENES, outcome
from tests.reaper import Reaper
from tests.servers import ServerMissing
from tests.store.bench import Bench
from tests.store.test_schema import differences

pytestmark = pytest.mark.fire


@pytest.fixture(scope="module")
def mariadb_databases(reaper: Reaper) -> Iterator[MariadbDatabases]:
    try:
        server = own_mariadb(reaper)
    except ServerMissing as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    yield MariadbDatabases(server.url)
    server.discard()


@pytest.fixture(scope="module")
def common_url(mariadb_databases: MariadbDatabases) -> str:
    return mariadb_databases.create()


@pytest.fixture
def empty_url(mariadb_databases: MariadbDatabases) -> Iterator[str]:
    url = mariadb_databases.create_empty()
    yield url
    mariadb_databases.drop(url)


@pytest.fixture
def engine(empty_url: str) -> Iterator[Engine]:
    door = Door(engine_maker(empty_url), Bench(empty_url).settings)
    yield door.engine
    door.close()


@pytest.fixture(scope="module")
def common_sqlite_url(sqlite_files: SqliteFiles, tmp_path_factory: pytest.TempPathFactory) -> str:
    return sqlite_files.create(tmp_path_factory.mktemp("fire") / "jobs.sqlite3")


# The tables.


def test_migrations_make_what_the_models_say(engine: Engine) -> None:
    migrations.upgrade(engine)
    migrations.upgrade(engine)
    assert differences(engine) == []
    with engine.connect() as connection:
        rows = connection.execute(select(job_status).order_by(job_status.c.id)).mappings()
        assert [dict(row) for row in rows] == STATUS_ROWS


def _upgrade_when_all_are_ready(url: str, ready: Barrier) -> None:
    engine = engine_maker(url)()
    with engine.connect():
        ready.wait()
    migrations.upgrade(engine)
    engine.dispose()


def test_several_processes_may_upgrade_at_once(empty_url: str, engine: Engine) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Barrier(3, timeout=60)
    upgrading = [spawn.Process(target=_upgrade_when_all_are_ready, args=(empty_url, ready)) for _ in range(3)]
    for process in upgrading:
        process.start()
    for process in upgrading:
        process.join(90)
    assert [process.exitcode for process in upgrading] == [0, 0, 0]
    assert differences(engine) == []


# The verbs.


@pytest.mark.parametrize("name", SCENES)
def test_every_verb_does_what_it_does_on_sqlite(common_url: str, common_sqlite_url: str, name: str) -> None:
    assert outcome(common_url, name) == outcome(common_sqlite_url, name)


# The connections.


class Killer:
    """Somebody on the server who ends the connections of a database, by a connection of his own."""

    def __init__(self, databases: MariadbDatabases, url: str) -> None:
        self._database = sqlalchemy.make_url(url).database
        self._engine = sqlalchemy.create_engine(databases.server_url, isolation_level="AUTOCOMMIT")

    def kill_all(self) -> int:
        """Kill all that there are; return how many that were."""
        which = f"db = '{self._database}'"
        killed = 0
        with self._engine.connect() as connection:
            found = connection.exec_driver_sql(f"SELECT id FROM information_schema.processlist WHERE {which}")
            for one in found.scalars().all():
                with contextlib.suppress(sqlalchemy.exc.DBAPIError):  # it has gone by itself meanwhile
                    connection.exec_driver_sql(f"KILL CONNECTION {one}")
                    killed += 1
        return killed

    def close(self) -> None:
        self._engine.dispose()


def test_a_connection_that_the_server_has_closed_costs_a_repeat_and_no_error(
    mariadb_databases: MariadbDatabases, common_url: str
) -> None:
    bench = Bench(common_url, namespace=str(uuid.uuid4()))
    job_id = bench.submit()
    killer = Killer(mariadb_databases, common_url)
    assert killer.kill_all()
    killer.close()
    assert bench.store.status(job_id) == "Submitted"
    bench.close()


@pytest.mark.slow
def test_all_connections_killed_again_and_again_change_nothing(mariadb_databases: MariadbDatabases) -> None:
    url = mariadb_databases.create()
    namespace = str(uuid.uuid4())
    through, beside = Bench(url, namespace=namespace), Bench(url, namespace=namespace)
    killer = Killer(mariadb_databases, url)
    live_through(through, killer.kill_all, beside)
    for one in (through, beside, killer):
        one.close()
    mariadb_databases.drop(url)
