"""A full disk: calls raise an error, nothing is half done; they succeed when there is space again."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import Engine, event

from jobhandle_celery.errors import DatabaseUnavailableError
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import Database, Selection, Store
from tests.databases import PostgresqlDatabases, migrate
from tests.servers import PostgresqlServer, execute
from tests.store.harness import Harness

pytestmark = pytest.mark.faults

LARGE = '"' + "x" * 100_000 + '"'


def fill(harness: Harness) -> int:
    """Submit until the disk is full; return how many jobs there are."""
    for count in range(10_000):
        try:
            harness.submit(args=f"[{LARGE}]")
        except DatabaseUnavailableError:
            return count
    raise AssertionError("it was never full")


def assert_refused_until_there_is_room(harness: Harness, make_room: Callable[[], object]) -> None:
    count = fill(harness)
    assert count > 0
    assert len(harness.store.pages.find(Selection(), None, 10_000)) == count, "a job is there, or it is not"
    for job in harness.store.pages.find(Selection(), None, 10_000):
        assert [event.status for event in harness.store.queries.events(job.id)] == [JobStatus.SUBMITTED]
    make_room()
    run = harness.run(harness.submit(args=f"[{LARGE}]"))
    assert harness.store.runs.finish(run, LARGE)
    assert harness.status(run.job_id) is JobStatus.FINISHED


def test_full_disk_under_sqlite_is_reported(sqlite_url: str) -> None:
    pages = 400

    def make_engine() -> Engine:
        engine = sqlalchemy.create_engine(sqlite_url)
        event.listen(engine, "connect", lambda connection, _: limit(connection))
        return engine

    def limit(connection: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages}")  # type: ignore[attr-defined]  # sqlite3's

    harness = Harness(sqlite_url)
    harness.database = Database(make_engine, harness.settings)
    harness.store = Store(harness.database)

    def make_room() -> None:
        nonlocal pages
        pages = 1_000_000
        harness.database.close()

    try:
        assert_refused_until_there_is_room(harness, make_room)
    finally:
        harness.close()


@contextmanager
def small_disk(folder: Path, user: str | None) -> Iterator[Path]:
    """A file system of 40 MB; only root can make one."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)], check=True)
    if user is not None:
        shutil.chown(folder, user)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small disk")
def test_full_disk_under_postgresql_is_reported(private_postgresql: PostgresqlServer) -> None:
    server = private_postgresql
    with small_disk(server.folder / "disk", server.user) as disk:
        execute(server.url, f"CREATE TABLESPACE small LOCATION '{disk}'")
        url = PostgresqlDatabases(server.url).create_empty()
        execute(server.url, f'ALTER DATABASE "{sqlalchemy.make_url(url).database}" SET TABLESPACE small')
        migrate(url)
        # TOAST would compress equal characters.
        execute(url, "ALTER TABLE jobhandle_job ALTER COLUMN args SET STORAGE EXTERNAL")
        harness = Harness(url)
        try:
            remount = ["mount", "-o", "remount,size=400m", str(disk)]
            assert_refused_until_there_is_room(harness, lambda: subprocess.check_call(remount))
        finally:
            harness.close()
            server.stop()
