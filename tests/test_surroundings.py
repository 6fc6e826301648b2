"""Settings of role, database, URL, engine and session change no job, or are refused before any write.

Each setting is tried in a session that a submit joins, and on the library's connections if they replace it.
"""

import contextlib
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

from jobhandle_celery import (
    ApiUsageError,
    DatabaseUnavailableError,
    Job,
    JobHandleError,
    JobStatus,
)
from jobhandle_celery.runtime import runtime_of
from jobhandle_celery.store import Run, Worker
from tests.apps import make_app
from tests.shop import Shop
from tests.store.harness import insert_within, new_job
from tests.support import prune_ended

TEXT = "é😀 \\ \\' ' \" ` || % %s :x {} \n"
HOUR = timedelta(hours=1)
JOB = Job(task="tests.add", args=[TEXT, -1], message=TEXT, meta={TEXT: TEXT}, expires=HOUR, unique_key=TEXT)
PLAIN = Job(task="tests.add", args=[TEXT, -1], message="plain", expires=HOUR)

POSTGRESQL = {
    "standard_conforming_strings": "off",
    "backslash_quote": "off",
    "bytea_output": "escape",
    "DateStyle": "German, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "America/St_Johns",
    "extra_float_digits": "-15",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "row_security": "off",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "quote_all_identifiers": "on",
    "search_path": "nowhere",
    "client_min_messages": "debug1",
    "plan_cache_mode": "force_generic_plan",
    "statement_timeout": "1min",
    "lock_timeout": "1min",
    "idle_in_transaction_session_timeout": "1min",
}
"""Settings with which jobs are right. (The library's connections set their own `search_path`.)"""

POSTGRESQL_REFUSED = {
    "client_encoding": ("SQL_ASCII", ApiUsageError),
    "default_transaction_read_only": ("on", DatabaseUnavailableError),
}

MARIADB = {
    "sql_mode": "'ORACLE,ANSI_QUOTES,PIPES_AS_CONCAT,NO_BACKSLASH_ESCAPES,NO_UNSIGNED_SUBTRACTION'",
    "time_zone": "'-05:00'",
    "tx_isolation": "'SERIALIZABLE'",
    "sql_safe_updates": "1",
    "sql_auto_is_null": "1",
    "timestamp": "1000000000",
    "collation_connection": "'utf8mb4_general_ci'",
    "div_precision_increment": "0",
    "group_concat_max_len": "4",
    "max_statement_time": "60",
    "innodb_lock_wait_timeout": "60",
    "idle_transaction_timeout": "60",
}
MARIADB_REFUSED = {
    "character_set_client": ("latin1", ApiUsageError),
    "tx_read_only": ("1", DatabaseUnavailableError),
}
SQLITE = {
    "foreign_keys": "OFF",
    "case_sensitive_like": "ON",
    "read_uncommitted": "ON",
    "recursive_triggers": "ON",
    "reverse_unordered_selects": "ON",
    "legacy_alter_table": "ON",
    "synchronous": "OFF",
}
SQLITE_REFUSED = {"query_only": ("ON", DatabaseUnavailableError)}

SETTINGS: dict[str, tuple[dict[str, str], dict[str, Any], str]] = {
    "postgresql": (POSTGRESQL, POSTGRESQL_REFUSED, "SET {} = {}"),
    "mariadb": (MARIADB, MARIADB_REFUSED, "SET {} = {}"),
    "sqlite": (SQLITE, SQLITE_REFUSED, "PRAGMA {} = {}"),
}


def live(app: Any, job_id: int, job: Job) -> None:
    """Claim and finish a job; assert that all its fields are read as given."""
    jobs, store = app.jobs, runtime_of(app).store
    found = jobs.attach(job_id).get_job()
    assert (found.args, found.message, found.meta) == (job.args, job.message, job.meta)
    assert found.expires - found.submitted == HOUR or abs(found.expires - found.submitted - HOUR) < HOUR / 2
    run = Run(job_id, found.task_id, 1, str(uuid.uuid4()), Worker("w@host", None, 1))
    assert store.runs.claim(run, found.task) == run
    assert store.runs.note_progress(run, 0.1 + 0.2, None) is not False
    assert store.runs.finish(run, '"\\u00e9"')
    found = jobs.attach(job_id).get_job()
    assert (found.result, found.status, found.progress.current) == ("é", JobStatus.FINISHED, 0.1 + 0.2)
    assert [moved.status for moved in jobs.events(job_id)] == ["Submitted", "Running", "Finished"]
    assert jobs.events(job_id)[0].actor == f"user {found.username}"
    mine = jobs.find(username=found.username, task=job.task, status="Finished")
    assert job_id in [row.id for row in mine]
    assert jobs.count_by_status()[JobStatus.FINISHED] == len(jobs.find())


@contextlib.contextmanager
def session_with(shop: Shop, setting: str) -> Iterator[Session]:
    """Open a session on a connection with a setting, and discard the connection."""
    with shop.engine.connect() as connection:
        cursor = connection.connection.cursor()
        cursor.execute(setting)
        cursor.close()
        connection.connection.commit()
        with Session(connection) as session:
            yield session
        connection.invalidate()


def quoted(database: str, name: str, value: str) -> str:
    return f"'{value}'" if database == "postgresql" and name not in ("DateStyle", "search_path") else value


@pytest.mark.parametrize("database", SETTINGS)
def test_job_is_right_with_any_session_setting(database: str, request: pytest.FixtureRequest) -> None:
    shop = Shop(request.getfixturevalue(f"{database}_url"))
    accepted, _, change = SETTINGS[database]
    username = "änn 😀"
    for name, value in accepted.items():
        with session_with(shop, change.format(name, quoted(database, name, value))) as session:
            job_id = shop.jobs.handle(username=username).submit(JOB, session=session)
            assert shop.jobs.handle(username=username).submit(JOB, session=session) == job_id, name
            session.commit()
        assert shop.sent() == [job_id], name
        live(shop.app, job_id, JOB)
    shop.close()


@pytest.mark.parametrize("database", SETTINGS)
def test_session_that_cannot_carry_a_job_is_refused(database: str, request: pytest.FixtureRequest) -> None:
    shop = Shop(request.getfixturevalue(f"{database}_url"))
    _, refused, change = SETTINGS[database]
    for name, (value, kind) in refused.items():
        with session_with(shop, change.format(name, quoted(database, name, value))) as session:
            with pytest.raises(kind):
                shop.jobs.handle(username="änn").submit(JOB, session=session)
            session.rollback()
    assert shop.jobs.find() == []
    shop.close()


def test_job_is_right_with_any_setting_of_postgresql(postgresql_url: str) -> None:
    """On the library's connections: `ALTER DATABASE` and `ALTER ROLE` set a session's defaults."""
    name = sqlalchemy.make_url(postgresql_url).database
    plain = sqlalchemy.create_engine(postgresql_url)
    own = {**POSTGRESQL, "client_encoding": "LATIN1"}
    del own["search_path"]
    with plain.begin() as connection:
        for setting, value in own.items():
            spelt = quoted("postgresql", setting, value)
            connection.exec_driver_sql(f'ALTER DATABASE "{name}" SET {setting} = {spelt}')
    plain.dispose()
    url = sqlalchemy.make_url(postgresql_url)
    for database in (
        postgresql_url,
        url.update_query_dict({"client_encoding": "latin1", "options": "-c DateStyle=SQL"}),
        lambda: sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT"),
        lambda: sqlalchemy.create_engine(url).execution_options(
            isolation_level="AUTOCOMMIT", schema_translate_map={None: "nowhere"}
        ),
    ):
        check_own(database)


@pytest.fixture
def latin1_url(mariadb_server_url: str) -> Iterator[str]:
    """A MariaDB database as mariadbd makes it by default, migrated."""
    name = f"jobhandle_latin1_{uuid.uuid4().hex}"
    server = sqlalchemy.create_engine(mariadb_server_url)
    with server.begin() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} CHARACTER SET latin1")
    url = server.url.set(database=name).render_as_string(hide_password=False)
    app: Any = make_app("memory://", url)
    app.jobs.upgrade_schema()
    app.jobs.close()
    yield url
    with server.begin() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name}")
    server.dispose()


def test_job_is_right_with_any_setting_of_mariadb(latin1_url: str) -> None:
    """mariadbd's own default is latin1: `submit` raised a DataError, outcomes were lost (fault 7)."""
    url = sqlalchemy.make_url(latin1_url)
    set_all = "SET " + ", ".join(f"{name} = {value}" for name, value in MARIADB.items())
    set_all += ", sql_select_limit = 1, character_set_client = latin1, character_set_results = latin1"
    for database in (
        url.update_query_dict({"charset": "latin1", "autocommit": "true"}),
        url.update_query_dict({"init_command": set_all}),
        lambda: sqlalchemy.create_engine(
            url.set(query={"charset": "latin1"}),
            isolation_level="AUTOCOMMIT",
            connect_args={"init_command": set_all},
        ),
        lambda: sqlalchemy.create_engine(url).execution_options(isolation_level="AUTOCOMMIT"),
    ):
        check_own(database)


def test_session_in_latin1_is_joined_if_it_carries_the_job(latin1_url: str) -> None:
    shop = Shop(latin1_url)
    engine = sqlalchemy.create_engine(shop.engine.url.set(query={"charset": "latin1"}))
    latin = Job(task="tests.add", args=[TEXT, -1], message="für später", meta={"é": TEXT}, expires=HOUR)
    with Session(engine) as session:
        handle = shop.jobs.handle(username="änn")
        with pytest.raises(ApiUsageError, match="charset=utf8mb4"):
            handle.submit(JOB, session=session)
        job_id = handle.submit(latin, session=session)
        session.commit()
    live(shop.app, job_id, latin)
    engine.dispose()
    shop.close()


def test_job_is_right_with_any_setting_of_sqlite(sqlite_url: str) -> None:
    def peculiar() -> Engine:
        engine = sqlalchemy.create_engine(sqlite_url, isolation_level="AUTOCOMMIT")

        @event.listens_for(engine, "connect")
        def change(connection: Any, _: Any) -> None:
            connection.text_factory, connection.row_factory = bytes, sqlite3.Row
            for name, value in SQLITE.items():
                connection.execute(f"PRAGMA {name} = {value}")

        return engine

    def by_options() -> Engine:
        return sqlalchemy.create_engine(sqlite_url).execution_options(
            isolation_level="AUTOCOMMIT", schema_translate_map={None: "nowhere"}
        )

    for database in (
        sqlalchemy.make_url(sqlite_url).update_query_dict(
            {"detect_types": "3", "isolation_level": "EXCLUSIVE"}
        ),
        peculiar,
        by_options,
    ):
        check_own(database)
    shop = Shop(sqlite_url)
    engine = sqlalchemy.create_engine(sqlite_url)
    event.listen(engine, "connect", lambda connection, _: setattr(connection, "text_factory", bytes))
    with Session(engine) as session, pytest.raises(ApiUsageError, match="text_factory"):
        shop.jobs.handle().submit(JOB, session=session)
    engine.dispose()
    shop.close()


def check_own(database: Any) -> None:
    """Assert that the library's connections have the right settings and real transactions."""
    app: Any = make_app("memory://", database)
    jobs = app.jobs
    handle = jobs.handle(username="änn 😀")
    live(app, handle.submit(JOB), JOB)
    before = len(jobs.find())
    store = runtime_of(app).store

    def fail_within() -> None:
        with store.database.transaction() as connection:
            insert_within(store, connection.connection, [new_job()])
            raise RuntimeError

    with contextlib.suppress(RuntimeError):
        fail_within()
    assert len(jobs.find()) == before
    handle.resubmit_job()
    assert handle.cancel_job() is JobStatus.CANCELLED
    assert prune_ended(jobs) == before
    jobs.close()


def test_error_of_the_database_is_never_sqlalchemys(postgresql_url: str) -> None:
    """Raw errors of SQLAlchemy showed the arguments of jobs among their parameters (fault 7)."""
    app: Any = make_app("memory://", postgresql_url)
    refusing: list[Callable[[], None]] = []
    engine = sqlalchemy.create_engine(postgresql_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE jobhandle_job ADD CHECK (groupname <> 'bad')")
    handle = app.jobs.handle(groupname="bad")
    refusing.append(lambda: handle.submit(JOB))
    refusing.append(lambda: app.jobs.submit_many([JOB, PLAIN], groupname="bad"))

    def joined() -> None:
        with Session(engine) as session:
            handle.submit(JOB, session=session)

    refusing.append(joined)
    for refuse in refusing:
        with pytest.raises(JobHandleError, match="refused") as caught:
            refuse()
        assert "😀" not in str(caught.value)
        assert caught.value.__cause__ is None
    engine.dispose()
    app.jobs.close()
