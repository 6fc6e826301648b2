"""A bench on each database. One database serves all tests of a kind, each in a namespace of its own."""

import uuid
from collections.abc import Iterator

import pytest

from tests.conftest import DATABASES
from tests.databases import MariadbDatabases, PostgresqlDatabases, SqliteFiles
from tests.store.bench import Bench

SERVERS = [name for name in DATABASES if name != "sqlite"]


@pytest.fixture(scope="session")
def common_sqlite_url(sqlite_files: SqliteFiles, tmp_path_factory: pytest.TempPathFactory) -> str:
    return sqlite_files.create(tmp_path_factory.mktemp("store") / "jobs.sqlite3")


@pytest.fixture(scope="session")
def common_postgresql_url(postgresql_databases: PostgresqlDatabases) -> Iterator[str]:
    url = postgresql_databases.create()
    yield url
    postgresql_databases.drop(url)


@pytest.fixture(scope="session")
def common_mariadb_url(mariadb_databases: MariadbDatabases) -> Iterator[str]:
    url = mariadb_databases.create()
    yield url
    mariadb_databases.drop(url)


@pytest.fixture(params=DATABASES)
def common_url(request: pytest.FixtureRequest) -> str:
    """A migrated database of each kind in turn, which other tests use too, in other namespaces."""
    url: str = request.getfixturevalue(f"common_{request.param}_url")
    return url


@pytest.fixture
def namespace() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def bench(common_url: str, namespace: str) -> Iterator[Bench]:
    bench = Bench(common_url, namespace=namespace)
    yield bench
    bench.close()


@pytest.fixture
def other(bench: Bench) -> Iterator[Bench]:
    """A second process, as far as the database can tell: connections of its own."""
    other = Bench(bench.url, namespace=bench.settings.namespace)
    yield other
    other.close()


@pytest.fixture(params=SERVERS)
def common_server_url(request: pytest.FixtureRequest) -> str:
    """For what SQLite, with its one lock, has no counterpart of."""
    url: str = request.getfixturevalue(f"common_{request.param}_url")
    return url


@pytest.fixture
def server_bench(common_server_url: str, namespace: str) -> Iterator[Bench]:
    bench = Bench(common_server_url, namespace=namespace)
    yield bench
    bench.close()
