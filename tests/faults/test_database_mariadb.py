"""MariaDB: every store call compared with SQLite, and connections that the server ends.

The store's own suite tests the calls and the tables; this module tests the rest.
"""

import socket
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy

from jobhandle_celery.schema import job
from jobhandle_celery.store import connections
from tests.databases import MariadbDatabases, SqliteFiles
from tests.faults.lifecycles import run_jobs_under_cuts
from tests.faults.store_calls import STORE_CALLS, run_undisturbed
from tests.rng import stretched
from tests.store.harness import Harness, insert_within, new_job

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def base(mariadb_databases: MariadbDatabases) -> Iterator[Harness]:
    url = mariadb_databases.create()
    base = Harness(url)
    yield base
    base.close()
    mariadb_databases.drop(url)


@pytest.fixture(scope="module")
def sqlite_factory(
    sqlite_databases: SqliteFiles, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Harness]:
    base = Harness(sqlite_databases.create(tmp_path_factory.mktemp("faults") / "jobs.sqlite3"))
    yield base
    base.close()


@pytest.mark.parametrize("name", STORE_CALLS)
def test_every_verb_does_what_it_does_on_sqlite(base: Harness, sqlite_factory: Harness, name: str) -> None:
    assert run_undisturbed(base, name) == run_undisturbed(sqlite_factory, name)


def test_closed_connection_costs_a_repeat_and_no_error(
    mariadb_databases: MariadbDatabases, mariadb_url: str
) -> None:
    harness = Harness(mariadb_url)
    job_id = harness.submit()
    assert mariadb_databases.disconnect(mariadb_url)
    assert harness.store.queries.status(job_id) == "Submitted"
    harness.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux's")
def test_vanished_server_is_noticed_in_seconds(mariadb_url: str) -> None:
    url = sqlalchemy.make_url(mariadb_url)
    assert url.host == "127.0.0.1"
    harness = Harness(mariadb_url)
    with harness.database.autocommit() as connection:
        driver: Any = connection.connection.connection.driver_connection
        asked = (socket.SOL_SOCKET, socket.SO_KEEPALIVE), (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        kept, silent = [driver._sock.getsockopt(*option) for option in asked]
    assert kept
    assert silent == 1000 * connections.CONNECT_TIMEOUT
    harness.close()


def test_snapshot_transaction_finds_a_unique_key_taken(
    mariadb_url: str,
) -> None:
    harness = Harness(mariadb_url)
    engine = sqlalchemy.create_engine(mariadb_url, isolation_level="REPEATABLE READ")
    with engine.begin() as connection:
        assert connection.execute(sqlalchemy.select(job.c.id)).all() == []
        job_id = harness.submit(unique_key="k")
        assert connection.execute(sqlalchemy.select(job.c.id)).all() == []
        [submitted] = insert_within(harness.store, connection, [new_job(unique_key="k")])
    assert (submitted.job_id, submitted.fresh) == (job_id, False)
    engine.dispose()
    harness.close()


@pytest.mark.slow
@pytest.mark.timeout(stretched(600))
def test_connections_killed_repeatedly_change_nothing(
    mariadb_databases: MariadbDatabases, mariadb_url: str
) -> None:
    namespace = str(uuid.uuid4())
    through, sibling_harness = (Harness(mariadb_url, namespace=namespace) for _ in range(2))
    run_jobs_under_cuts(through, lambda: mariadb_databases.disconnect(mariadb_url), sibling_harness)
    for opened in (through, sibling_harness):
        opened.close()
