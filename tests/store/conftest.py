"""A harness on each database. One database serves all tests of a kind, each in a namespace of its own.

The tests share two engines too: to connect and to compile every statement for each test took most of their
time. A test that listens to its engine, or limits it, has its own.
"""

import uuid
from collections.abc import Iterator

import pytest

from jobhandle_celery.settings import Settings
from jobhandle_celery.store import Database, engine_maker
from tests.database_fixtures import fresh_database
from tests.databases import DATABASES
from tests.store.harness import CommonDoor, Harness

SERVERS = [name for name in DATABASES if name != "sqlite"]


common_sqlite_url = fresh_database("sqlite", "session")
common_postgresql_url = fresh_database("postgresql", "session")
common_mariadb_url = fresh_database("mariadb", "session")


@pytest.fixture(params=DATABASES)
def common_url(request: pytest.FixtureRequest) -> str:
    """A migrated database of each kind in turn, which other tests use too, in other namespaces."""
    url: str = request.getfixturevalue(f"common_{request.param}_url")
    return url


@pytest.fixture
def namespace() -> str:
    return str(uuid.uuid4())


@pytest.fixture(scope="session")
def common_database() -> Iterator[CommonDoor]:
    """The common databases: `common_database(url, whose)`."""
    databases: dict[tuple[str, str], Database] = {}

    def database(url: str, whose: str) -> Database:
        return databases.setdefault((url, whose), Database(engine_maker(url), Settings()))

    yield database
    for opened in databases.values():
        opened.close()


@pytest.fixture
def harness(common_url: str, common_database: CommonDoor, namespace: str) -> Harness:
    return Harness(common_url, common_database(common_url, "the first"), namespace=namespace)


@pytest.fixture
def other(harness: Harness, common_database: CommonDoor) -> Harness:
    """A second process, as the database sees it: a harness with its own connections."""
    return Harness(
        harness.url, common_database(harness.url, "the other"), namespace=harness.settings.namespace
    )


@pytest.fixture
def own_harness(common_url: str, namespace: str) -> Iterator[Harness]:
    """A harness whose engine no other test uses."""
    harness = Harness(common_url, namespace=namespace)
    yield harness
    harness.close()


@pytest.fixture
def crowded_harness(database_url: str) -> Iterator[Harness]:
    """A harness on its own database, for thousands of jobs: later tests would read them all."""
    harness = Harness(database_url)
    yield harness
    harness.close()


@pytest.fixture(params=SERVERS)
def common_server_url(request: pytest.FixtureRequest) -> str:
    """The servers only: SQLite has one lock."""
    url: str = request.getfixturevalue(f"common_{request.param}_url")
    return url


@pytest.fixture
def server_harness(common_server_url: str, common_database: CommonDoor, namespace: str) -> Harness:
    return Harness(common_server_url, common_database(common_server_url, "the first"), namespace=namespace)


@pytest.fixture
def own_server_harness(common_server_url: str, namespace: str) -> Iterator[Harness]:
    """A harness on a server whose engine no other test uses."""
    harness = Harness(common_server_url, namespace=namespace)
    yield harness
    harness.close()
