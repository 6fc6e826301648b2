"""Sites for the tests with real workers: one for a module whose workers stay alive, else one for a test."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy

from tests.conftest import WORKERS
from tests.databases import PostgresqlDatabases, SqliteFiles
from tests.reaper import Reaper
from tests.worker.site import NewSite, Site


@pytest.fixture(scope="module")
def module_site(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    reaper: Reaper,
    redis_database_url: str,
    workers_temporary_folder: Path,
) -> Iterator[NewSite]:
    """Make the sites of a module: `module_site(settings={…}, database="sqlite")`."""
    with ExitStack() as stack:
        yield _maker(
            request,
            stack,
            tmp_path_factory.mktemp("site"),
            reaper,
            redis_database_url,
            workers_temporary_folder,
        )


@pytest.fixture(scope="session")
def second_redis_url(redis_database_url: str) -> str:
    """Another logical database, for a site beside that of the module."""
    url = sqlalchemy.make_url(redis_database_url)
    other = url.set(database=str(int(url.database or 0) + 1)).render_as_string(hide_password=False)
    with redis.Redis.from_url(other) as client:
        if client.dbsize():
            pytest.fail("the tests would flush a logical database of the given Redis that is not empty")
    return other


@pytest.fixture
def new_site(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    reaper: Reaper,
    second_redis_url: str,
    workers_temporary_folder: Path,
) -> Iterator[NewSite]:
    """Make the sites of one test."""
    with ExitStack() as stack:
        yield _maker(request, stack, tmp_path, reaper, second_redis_url, workers_temporary_folder)


def _maker(
    request: pytest.FixtureRequest,
    stack: ExitStack,
    folder: Path,
    reaper: Reaper,
    redis_url: str,
    temporary_folder: Path,
) -> NewSite:
    def make(
        *,
        database: str = "postgresql",
        database_url: str | None = None,
        broker_url: str | None = None,
        **options: Any,
    ) -> Site:
        if database_url is None and database == "postgresql":
            databases: PostgresqlDatabases = request.getfixturevalue("postgresql_databases")
            database_url = databases.create()
            stack.callback(databases.drop, database_url)
        elif database_url is None:
            files: SqliteFiles = request.getfixturevalue("sqlite_databases")
            database_url = files.create(folder / "jobs.sqlite3")
        site = Site(
            folder,
            reaper,
            database_url,
            broker_url or redis_url,
            environment={"TMPDIR": str(temporary_folder)},
            results_url=redis_url,
            **options,
        )
        stack.callback(site.close)
        request.node.stash.setdefault(WORKERS, site.workers)
        return site

    return make


@pytest.fixture(autouse=True)
def _log_of_the_modules_workers(request: pytest.FixtureRequest) -> None:
    """Show the logs of the module's workers when a test fails."""
    workers = request.node.parent.stash.get(WORKERS, None)
    if workers is not None:
        request.node.stash[WORKERS] = workers
