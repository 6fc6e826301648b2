"""Fixtures for all tests: fresh databases. A plugin of `conftest.py`."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.databases import DATABASES, MariadbDatabases, PostgresqlDatabases, SqliteFiles
from tests.reaper import Reaper
from tests.servers.places import fast_folder


@pytest.fixture(scope="session")
def sqlite_databases(reaper: Reaper) -> SqliteFiles:
    folder = Path(tempfile.mkdtemp(prefix="jobhandle-test-sqlite-", dir=fast_folder()))
    reaper.remove_folder(folder)
    return SqliteFiles(folder)


@pytest.fixture(scope="session")
def postgresql_databases(postgresql_server_url: str) -> Iterator[PostgresqlDatabases]:
    databases = PostgresqlDatabases(postgresql_server_url)
    yield databases
    databases.close()


@pytest.fixture(scope="session")
def mariadb_databases(mariadb_server_url: str) -> Iterator[MariadbDatabases]:
    databases = MariadbDatabases(mariadb_server_url)
    yield databases
    databases.close()


def fresh_database(kind: str, scope: Any = "function", *, empty: bool = False) -> Callable[..., Any]:
    """Make a fixture that returns the URL of a fresh database of a kind, migrated unless `empty`."""

    @pytest.fixture(scope=scope)
    def url(request: pytest.FixtureRequest) -> Iterator[str]:
        databases = request.getfixturevalue(f"{kind}_databases")
        url = databases.create_empty() if empty else databases.create()
        yield url
        databases.drop(url)

    return url


sqlite_url = fresh_database("sqlite")


postgresql_url = fresh_database("postgresql")


mariadb_url = fresh_database("mariadb")


empty_postgresql_url = fresh_database("postgresql", empty=True)


empty_mariadb_url = fresh_database("mariadb", empty=True)


@pytest.fixture
def empty_sqlite_url(tmp_path: Path) -> str:
    """A SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'empty.sqlite3'}"


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh migrated database, of each kind in turn."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(params=DATABASES)
def empty_database_url(request: pytest.FixtureRequest) -> str:
    """A fresh database without any table, of each kind in turn."""
    url: str = request.getfixturevalue(f"empty_{request.param}_url")
    return url
