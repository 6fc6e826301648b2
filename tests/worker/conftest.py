"""Clusters for the tests with real workers: one for a module whose workers stay alive, or one for a test."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.databases import PostgresqlDatabases, SqliteFiles
from tests.reaper import Reaper
from tests.worker.cluster import Cluster, NewCluster
from tests.workers import WORKERS


@pytest.fixture(scope="module")
def module_cluster(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    reaper: Reaper,
    redis_database_url: str,
    workers_temporary_folder: Path,
) -> Iterator[NewCluster]:
    """Make the clusters of a module: `module_cluster(settings={…}, database="sqlite")`."""
    with ExitStack() as stack:
        yield _maker(
            request,
            stack,
            tmp_path_factory.mktemp("cluster"),
            reaper,
            redis_database_url,
            workers_temporary_folder,
        )


@pytest.fixture
def new_cluster(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    reaper: Reaper,
    second_redis_url: str,
    workers_temporary_folder: Path,
) -> Iterator[NewCluster]:
    """Make the clusters of one test."""
    with ExitStack() as stack:
        yield _maker(request, stack, tmp_path, reaper, second_redis_url, workers_temporary_folder)


def _maker(
    request: pytest.FixtureRequest,
    stack: ExitStack,
    folder: Path,
    reaper: Reaper,
    redis_url: str,
    temporary_folder: Path,
) -> NewCluster:
    def make(
        *,
        database: str = "postgresql",
        database_url: str | None = None,
        broker_url: str | None = None,
        **options: Any,
    ) -> Cluster:
        if database_url is None and database == "postgresql":
            databases: PostgresqlDatabases = request.getfixturevalue("postgresql_databases")
            database_url = databases.create()
            stack.callback(databases.drop, database_url)
        elif database_url is None:
            files: SqliteFiles = request.getfixturevalue("sqlite_databases")
            database_url = files.create(folder / "jobs.sqlite3")
        cluster = Cluster(
            folder,
            reaper,
            database_url,
            broker_url or redis_url,
            environment={"TMPDIR": str(temporary_folder)},
            results_url=redis_url,
            **options,
        )
        stack.callback(cluster.close)
        request.node.stash.setdefault(WORKERS, cluster.workers)
        return cluster

    return make


@pytest.fixture(autouse=True)
def _log_of_the_modules_workers(request: pytest.FixtureRequest) -> None:
    """Show the logs of the module's workers when a test fails."""
    workers = request.node.parent.stash.get(WORKERS, None)
    if workers is not None:
        request.node.stash[WORKERS] = workers
