"""The tables: migrations make what the models define, and each column returns what was stored."""

import multiprocessing
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import alembic
import pytest
import sqlalchemy
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Engine, event, inspect, select, text
from sqlalchemy.exc import StatementError

from jobhandle_celery import Job, migrations
from jobhandle_celery.column_types import UtcDateTime
from jobhandle_celery.errors import DatabaseRefusedError, SchemaError
from jobhandle_celery.schema import STATUS_ROWS, VERSION_TABLE, job, job_status, metadata
from jobhandle_celery.status import FINAL, JobStatus
from jobhandle_celery.store import Database, Run, engine_maker
from jobhandle_celery.store.connections import LOCK_WAIT
from tests.configured import jobs_of
from tests.store.harness import TASK, Harness, insert_within, new_job


@pytest.fixture
def engine(empty_database_url: str) -> Iterator[Engine]:
    """An empty database, with an engine like the library's."""
    database = Database(engine_maker(empty_database_url), Harness(empty_database_url).settings)
    yield database.engine
    database.close()


def ours(_object: Any, name: str | None, kind: str, _reflected: bool, _compared: Any) -> bool:
    return kind != "table" or name != VERSION_TABLE


def differences(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"include_object": ours, "compare_type": True, "compare_server_default": True}
        )
        found: list[Any] = compare_metadata(context, metadata)
        return found


def status_rows(engine: Engine) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        rows = connection.execute(select(job_status).order_by(job_status.c.id)).mappings()
        return [dict(row) for row in rows]


def live(harness: Harness) -> None:
    """Run a job through a whole life."""
    job_id = harness.submit(unique_key="k")
    assert harness.submit(unique_key="k") == job_id
    run = harness.run(job_id)
    assert harness.store.runs.finish(run, "1")
    assert harness.store.sweep.begin_pass() is False
    harness.pass_time(days=2)
    for worker_uid in harness.lapsed_workers():
        harness.reap(worker_uid)
    assert harness.events(job_id) == [JobStatus.SUBMITTED, JobStatus.RUNNING, JobStatus.FINISHED]
    assert harness.store.sweep.prune(timedelta(days=1)) == 1


def test_migrations_make_what_the_models_say(engine: Engine) -> None:
    migrations.upgrade(engine)
    assert differences(engine) == []


def test_column_that_the_models_lack_would_be_noticed(engine: Engine) -> None:
    migrations.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE jobhandle_job ADD COLUMN surplus INTEGER"))
    assert [change[0] for change in differences(engine)] == ["remove_column"]


def test_check_knows_the_last_revision(engine: Engine) -> None:
    migrations.upgrade(engine)
    with engine.connect() as connection:
        assert connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalars().all() == [
            migrations.REVISIONS[-1]
        ]
        migrations.check(connection)


def test_reference_rows_are_the_nine_statuses(engine: Engine) -> None:
    migrations.upgrade(engine)
    rows = status_rows(engine)
    assert rows == STATUS_ROWS
    assert {(row["id"], row["value"], row["final"]) for row in rows} == {
        (status.id, status.value, status in FINAL) for status in JobStatus
    }


def test_upgrade_of_new_tables_changes_nothing(engine: Engine) -> None:
    migrations.upgrade(engine)
    migrations.upgrade(engine)
    assert differences(engine) == []
    assert status_rows(engine) == STATUS_ROWS


def test_tables_created_from_metadata_are_accepted(engine: Engine, empty_database_url: str) -> None:
    """An application's tests or its Alembic made them: there is no version table, and no error."""
    metadata.create_all(engine)
    metadata.create_all(engine)
    assert status_rows(engine) == STATUS_ROWS
    with engine.connect() as connection:
        migrations.check(connection)
    harness = Harness(empty_database_url)
    live(harness)
    harness.close()


def _upgrade_when_all_are_ready(url: str, ready: Barrier) -> None:
    database = Database(engine_maker(url), Harness(url).settings)
    with database.engine.connect():
        ready.wait()
    migrations.upgrade(database.engine)
    database.close()


def test_several_processes_may_upgrade_at_once(empty_database_url: str, engine: Engine) -> None:
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    ready = server.Barrier(3, timeout=60)
    upgrading = [
        server.Process(target=_upgrade_when_all_are_ready, args=(empty_database_url, ready)) for _ in range(3)
    ]
    for process in upgrading:
        process.start()
    for process in upgrading:
        process.join(90)
    assert [process.exitcode for process in upgrading] == [0, 0, 0]
    assert differences(engine) == []
    assert status_rows(engine) == STATUS_ROWS


def test_upgrade_on_a_busy_machine_has_no_limits_of_time(empty_postgresql_url: str) -> None:
    """Neither while another process upgrades, nor between two statements."""
    database = Database(engine_maker(empty_postgresql_url), Harness(empty_postgresql_url).settings)
    limits: dict[str, tuple[str, str]] = {}

    def note(_connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        kind = next((kind for kind in ("pg_advisory", "CREATE TABLE") if kind in statement), None)
        if kind:
            names = ("idle_in_transaction_session_timeout", "lock_timeout")
            limits[kind] = tuple(cursor.execute(f"SHOW {name}").fetchone()[0] for name in names)

    event.listen(database.engine, "before_cursor_execute", note)
    migrations.upgrade(database.engine)
    database.close()
    assert limits == {"pg_advisory": ("0", "0"), "CREATE TABLE": ("0", f"{LOCK_WAIT}s")}


# Tables that do not match.


def check(engine: Engine) -> str:
    with engine.connect() as connection, pytest.raises(SchemaError) as caught:
        migrations.check(connection)
    return str(caught.value)


def upgrade_by_ones_own_alembic(url: str, folder: Path, body: str | None = None) -> None:
    """Write and run an Alembic migration with `body`, or autogenerated from the missing tables."""
    config = Config()
    config.set_main_option("script_location", str(folder))
    with sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool).begin() as connection:
        config.attributes["connection"] = connection
        script: Any = command.revision(config, autogenerate=body is None)
        written = Path(script.path)
        source = written.read_text()
        if body is not None:
            source = source.replace("pass", body, 1)
        written.write_text("import jobhandle_celery.schema\n" + source)
        command.upgrade(config, "head")


ENV = """
from alembic import context
from jobhandle_celery.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
"""


def test_tables_without_statuses_are_refused_with_what_to_add(
    engine: Engine, empty_database_url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "alembic"
    shutil.copytree(Path(alembic.__file__).parent / "templates" / "generic", folder)
    (folder / "versions").mkdir()
    (folder / "env.py").write_text(ENV)
    upgrade_by_ones_own_alembic(empty_database_url, folder)
    assert {*metadata.tables} < {*inspect(engine).get_table_names()}
    complaint = check(engine)
    [to_add, to_import] = re.findall("`(.*?)`", complaint)
    jobs = jobs_of(empty_database_url)
    with pytest.raises(SchemaError, match=re.escape(complaint)):
        jobs.handle().submit(Job(task=TASK))

    upgrade_by_ones_own_alembic(empty_database_url, folder, f"{to_import}; {to_add}")
    assert status_rows(engine) == STATUS_ROWS
    jobs.handle().submit(Job(task=TASK))
    assert jobs.count_by_status()[JobStatus.QUEUED] == 1
    jobs.close()


def test_refused_row_is_not_taken_for_an_existing_one(engine: Engine, empty_database_url: str) -> None:
    migrations.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(job_status.delete())
    harness = Harness(empty_database_url)
    with pytest.raises(DatabaseRefusedError):
        harness.submit(unique_key="k")
    harness.close()


@pytest.mark.parametrize("found", ["0000", None])
def test_older_tables_are_refused_with_what_to_run(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, found: str | None
) -> None:
    migrations.upgrade(engine)
    monkeypatch.setattr(migrations, "REVISIONS", ("0000", *migrations.REVISIONS))
    with engine.begin() as connection:
        connection.execute(text(f"DELETE FROM {VERSION_TABLE}"))
        if found:
            connection.execute(text(f"INSERT INTO {VERSION_TABLE} VALUES (:found)"), {"found": found})
    complaint = check(engine)
    assert "jobs.upgrade_schema()" in complaint
    assert "newer" not in complaint


# A chosen database schema.


def test_tables_live_in_a_chosen_schema(empty_postgresql_url: str) -> None:
    harness = Harness(empty_postgresql_url, schema="Jobs of ours")
    engine = harness.database.engine
    migrations.upgrade(engine, "Jobs of ours")
    migrations.upgrade(engine, "Jobs of ours")
    assert {*metadata.tables, VERSION_TABLE} == set(inspect(engine).get_table_names(schema="Jobs of ours"))
    assert inspect(engine).get_table_names(schema="public") == []
    with engine.connect() as connection:
        migrations.check(connection, "Jobs of ours")
    live(harness)
    harness.close()


def test_submit_in_the_callers_session_finds_the_chosen_schema(empty_postgresql_url: str) -> None:
    harness = Harness(empty_postgresql_url, schema="ours")
    migrations.upgrade(harness.database.engine, "ours")
    plain = engine_maker(empty_postgresql_url)()
    with plain.begin() as connection:
        [submitted] = insert_within(harness.store, connection, [new_job(unique_key="k")])
    plain.dispose()
    assert harness.status(submitted.job_id) is JobStatus.SUBMITTED
    harness.close()


def test_tables_in_another_schema_are_missing(postgresql_url: str) -> None:
    engine = engine_maker(postgresql_url)()
    with engine.connect() as connection, pytest.raises(SchemaError):
        migrations.check(connection, "elsewhere")
    engine.dispose()


# Columns.


def test_naive_time_is_refused(harness: Harness) -> None:
    naive = datetime(2030, 1, 1)  # noqa: DTZ001 - a naive one is what this is about
    with pytest.raises((StatementError, TypeError), match="no time zone"):
        harness.submit(expires=naive)
    assert harness.store.queries.count_by_status()[JobStatus.SUBMITTED] == 0


@pytest.mark.parametrize("microsecond", [0, 1, 123456, 999999])
def test_time_comes_back_in_utc_and_to_the_microsecond(harness: Harness, microsecond: int) -> None:
    east = timezone(timedelta(hours=5, minutes=30))
    given = datetime(2030, 1, 1, 3, 4, 5, microsecond, tzinfo=east)
    found = harness.row(harness.submit(expires=given))["expires"]
    assert found == given
    assert found.tzinfo is UTC


def test_every_moment_is_of_the_type_that_refuses_naive_times() -> None:
    moments = [
        column
        for table in metadata.tables.values()
        for column in table.c
        if isinstance(column.type, sqlalchemy.DateTime)
        or isinstance(getattr(column.type, "impl", None), sqlalchemy.DateTime)
    ]
    assert moments
    assert all(isinstance(column.type, UtcDateTime) for column in moments)


def test_unknown_status_is_refused_by_the_database(harness: Harness) -> None:
    job_id = harness.submit()
    with pytest.raises(DatabaseRefusedError), harness.database.transaction() as connection:
        connection.execute(text("UPDATE jobhandle_job SET status_id = 10 WHERE id = :id"), {"id": job_id})


def test_id_of_a_deleted_job_is_never_another_jobs(database_url: str) -> None:
    harness = Harness(database_url)
    job_id = harness.submit()
    harness.store.control.cancel(job_id, None, terminate=False)
    harness.pass_time(days=2)
    assert harness.store.sweep.prune(timedelta(days=1)) == 1
    assert harness.store.queries.job(job_id) is None
    assert harness.store.queries.events(job_id) == []
    assert harness.submit() > job_id
    harness.close()


# Namespaces.


def test_namespaces_do_not_see_each_other(harness: Harness) -> None:
    here = harness
    there = Harness(harness.url, namespace=f"not {harness.settings.namespace}"[:63])
    job_id = here.submit(unique_key="k", expires=timedelta(minutes=5), queue="q")
    assert there.submit(unique_key="k") != job_id
    row = here.row(job_id)
    task_id = row["task_id"]

    assert there.store.queries.job(job_id) is None
    assert there.store.control.cancel(job_id, None, terminate=False) is None
    assert there.store.control.set_status(job_id, JobStatus.CANCELLED, "t", None, None) == (None, False)
    assert there.store.control.set_message(job_id, "mine", None, None) is None
    assert not there.store.runs.send_back(job_id, task_id, 1, TASK, there.worker())
    assert not isinstance(there.store.runs.claim(here.key(job_id, there.worker()), TASK), Run)
    assert there.store.outbox.reserve([job_id]) == []
    here.pass_time(minutes=6)
    assert there.store.sweep.expire() == 0
    assert job_id not in [message.job_id for message in there.store.outbox.reserve_due(10)]
    assert here.row(job_id)["status_id"] is row["status_id"]

    here.queue(job_id)
    assert there.store.outbox.count_queued(["q"]) == {}
    assert here.store.sweep.begin_pass() is False
    assert there.store.sweep.begin_pass() is False
    lapsed = here.worker()
    here.pass_time(hours=1)
    assert there.lapsed_workers() == []
    assert here.lapsed_workers() == [lapsed.worker_uid]
    there.close()


def test_tables_carry_their_prefix() -> None:
    assert all(name.startswith("jobhandle_") for name in [*metadata.tables, VERSION_TABLE])
    assert job.name in metadata.tables
