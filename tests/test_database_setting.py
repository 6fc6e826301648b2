"""Wrong databases, their URLs and their tables: each error says what to do, none shows a password."""

import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from jobhandle_celery import (
    ConfigurationError,
    DatabaseUnavailableError,
    Job,
    JobHandleError,
    JobStatus,
    SchemaError,
    ValidationError,
)
from tests.configured import jobs_of
from tests.databases import PostgresqlDatabases
from tests.servers import execute

SECRET = "hunter2-hunter2"
ADD = Job(task="tests.add", args=[1, 2])


@pytest.fixture(autouse=True)
def _password_is_not_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.DEBUG):
        yield
    assert SECRET not in caplog.text


def shown_text(error: BaseException) -> str:
    """Return all that a log would show of an error and its causes."""
    shown = "".join(traceback.format_exception(error))
    chain: BaseException | None = error
    while chain is not None:
        shown += f"{chain!r} {chain.args!r}\n"
        chain = chain.__cause__ or chain.__context__
    return shown


def test_missing_database_setting_raises_with_a_hint() -> None:
    jobs = jobs_of(None)
    for use in (jobs.handle, jobs.find, jobs.upgrade_schema):
        with pytest.raises(ConfigurationError, match=r"Jobs\(app, .*jobhandle_database_url"):
            use()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "no url",
        "postgresql",
        f"nosuch://ann:{SECRET}@host/name",
        f"postgresql://ann:{SECRET}@host:port/name",
        f"postgresql+nosuch://ann:{SECRET}@host/name",
        f"postgresql//ann:{SECRET}@host/name",
        f"ann:{SECRET}@host",
        sqlalchemy.URL.create("nosuch", "ann", SECRET, "host"),
        5,
        Path("jobs.sqlite3"),
        b"sqlite:///jobs.sqlite3",
    ],
)
def test_what_is_no_database_url_is_refused_at_once(url: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"Accepted: .*sqlite:///") as caught:
        jobs_of(url)
    assert SECRET not in shown_text(caught.value)
    late = jobs_of(None, jobhandle_database_url=url)
    with pytest.raises(ConfigurationError) as caught:
        late.find()
    assert SECRET not in shown_text(caught.value)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///"])
def test_database_in_memory_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="Name a file"):
        jobs_of(url)


@pytest.mark.parametrize("driver", ["postgresql+asyncpg", "sqlite+aiosqlite", "mysql+aiomysql"])
def test_async_driver_is_refused_with_a_working_drivers_name(driver: str) -> None:
    with pytest.raises(ConfigurationError, match=r"async.*(postgresql\+psycopg|sqlite)") as caught:
        jobs_of(f"{driver}://ann:{SECRET}@host/name")
    assert SECRET not in shown_text(caught.value)


@pytest.mark.parametrize("url", ["oracle://ann:{}@host/name", "postgresql://ann:{}@[/name"])
def test_unusable_database_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(JobHandleError) as caught:
        jobs_of(url.format(SECRET)).find()
    assert SECRET not in shown_text(caught.value)


@pytest.mark.parametrize("driver", ["psycopg2", "pg8000"])
def test_missing_driver_raises_with_the_package(driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(ConfigurationError, match=r"not installed.*jobhandle-celery\[postgresql\]") as caught:
        jobs_of(f"postgresql+{driver}://ann:{SECRET}@host/name").find()
    assert SECRET not in shown_text(caught.value)


def test_plain_postgresql_url_goes_through_psycopg_3(postgresql_url: str) -> None:
    for url in (
        postgresql_url.replace("postgresql+psycopg:", "postgresql:"),
        sqlalchemy.make_url(postgresql_url),
    ):
        jobs = jobs_of(url)
        assert jobs.find() == []
        jobs.close()


def test_engine_factory_is_called_once_at_first_use(database_url: str) -> None:
    made: list[sqlalchemy.Engine] = []

    def make() -> sqlalchemy.Engine:
        made.append(sqlalchemy.create_engine(database_url))
        return made[-1]

    jobs = jobs_of(make)
    assert made == []
    job_id = jobs.handle().submit(Job(task="unregistered"))
    assert jobs.attach(job_id).job_status() is JobStatus.QUEUED
    assert len(made) == 1
    jobs.close()


@pytest.mark.parametrize("wrong", [None, "sqlite:///jobs.sqlite3", object()])
def test_function_that_makes_no_engine_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="Engine"):
        jobs_of(lambda: wrong).find()


def test_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    jobs = jobs_of(f"sqlite:///{tmp_path}/missing/jobs.sqlite3")
    for use in (jobs.find, lambda: jobs.handle().submit(ADD)):
        with pytest.raises(JobHandleError, match=r"missing/jobs\.sqlite3"):
            use()


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://ann:{SECRET}@127.0.0.1:1/shop",
        f"postgresql:///shop?host=127.0.0.1&port=1&user=ann&password={SECRET}",
    ],
)
def test_unreachable_server_is_named_without_the_password(url: str) -> None:
    jobs = jobs_of(url)
    for use in (jobs.upgrade_schema, *uses_of(jobs)):
        with pytest.raises(DatabaseUnavailableError, match=r"127\.0\.0\.1") as caught:
            use()
        assert isinstance(caught.value, ConnectionError)
        assert SECRET not in shown_text(caught.value)
    for shown in (jobs, jobs._app, jobs._runtime, jobs._runtime.store, jobs._runtime.store.database):
        assert SECRET not in repr(shown)


def test_wrong_password_is_reported_without_the_password(postgresql_url: str) -> None:
    right = sqlalchemy.make_url(postgresql_url)
    assert right.password is not None
    for url, reason in (
        (right.set(password=SECRET), "password"),
        (right.set(username="unknown_role"), "unknown_role"),
        (right.set(database="nosuch"), "nosuch"),
    ):
        with pytest.raises(DatabaseUnavailableError, match=reason) as caught:
            jobs_of(url).find()
        assert SECRET not in shown_text(caught.value)
        assert right.password not in shown_text(caught.value)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_encoding_that_cannot_hold_every_text_is_refused(
    postgresql_databases: PostgresqlDatabases, encoding: str
) -> None:
    url = postgresql_databases.create_empty(encoding)
    jobs = jobs_of(url)
    for use in (jobs.upgrade_schema, *uses_of(jobs)):
        with pytest.raises(ConfigurationError, match=f"is {encoding}.* CREATE DATABASE .* ENCODING 'UTF8'"):
            use()
    jobs.close()
    postgresql_databases.drop(url)


class OfMysql:
    """A driver's connection and cursor, which answer as MySQL 8."""

    def cursor(self) -> "OfMysql":
        return self

    def __enter__(self) -> "OfMysql":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self, statement: str) -> None:
        assert statement == "SELECT VERSION()", "MySQL would not understand it"

    def fetchone(self) -> tuple[str]:
        return ("8.0.36",)


@pytest.mark.parametrize("called", ["mysql", "mariadb"])
def test_mysql_is_refused_with_the_name_of_what_works(called: str) -> None:
    jobs = jobs_of(lambda: sqlalchemy.create_engine(f"{called}+pymysql://", creator=OfMysql))
    for use in (jobs.upgrade_schema, *uses_of(jobs)):
        with pytest.raises(ConfigurationError, match=r"MySQL \(8\.0\.36\) is not supported; MariaDB 10\.6"):
            use()


def uses_of(jobs: Any) -> list[Callable[[], Any]]:
    return [
        jobs.find,
        jobs.count_by_status,
        jobs.sweep,
        lambda: jobs.attach(1),
        lambda: jobs.events(1),
        lambda: jobs.handle(username="ann").submit(ADD),
        lambda: jobs.submit_many([ADD]),
        lambda: jobs.cancel_many(task="a"),
        lambda: jobs.prune(0),
    ]


def test_missing_tables_raise_with_the_command_that_helps(empty_database_url: str) -> None:
    jobs = jobs_of(empty_database_url)
    for use in uses_of(jobs):
        with pytest.raises(SchemaError, match=r"Run `jobs\.upgrade_schema\(\)`"):
            use()
    jobs.upgrade_schema()
    jobs.upgrade_schema()
    handle = jobs.handle()
    handle.submit(ADD)
    assert handle.job_status() is JobStatus.QUEUED
    jobs.close()


def test_newer_tables_raise_with_the_package_to_upgrade(database_url: str) -> None:
    execute(database_url, "UPDATE jobhandle_schema_version SET version_num = '9999'")
    jobs = jobs_of(database_url)
    for use in [*uses_of(jobs), jobs.upgrade_schema, lambda: jobs.upgrade_schema(sql=True)]:
        with pytest.raises(SchemaError, match=r"9999.*newer.*pip install --upgrade jobhandle-celery"):
            use()
    assert execute(database_url, "SELECT count(*) FROM jobhandle_job") == [(0,)]
    jobs.close()


@pytest.mark.parametrize(
    "given", [{"from_revision": "0001"}, {"from_revision": "base"}, {"sql": True, "from_revision": "7"}]
)
def test_wrong_revision_of_an_upgrade_is_refused(empty_sqlite_url: str, given: dict[str, Any]) -> None:
    """One that does not exist, or is given without `sql`, by which nothing would be printed."""
    jobs = jobs_of(empty_sqlite_url)
    with pytest.raises(ValidationError, match=r"^from_revision: .*with sql, one of base, 0001"):
        jobs.upgrade_schema(**given)
    with pytest.raises(SchemaError):
        jobs.find()
    jobs.close()


def test_half_made_tables_raise_with_the_command(database_url: str) -> None:
    execute(database_url, "DELETE FROM jobhandle_schema_version")
    jobs = jobs_of(database_url)
    with pytest.raises(SchemaError, match="upgrade_schema"):
        jobs.find()
    jobs.close()


def test_tables_may_lie_in_a_schema_of_their_own(empty_postgresql_url: str) -> None:
    jobs = jobs_of(empty_postgresql_url, jobhandle_schema="Jobs of the shop")
    with pytest.raises(SchemaError):
        jobs.find()
    jobs.upgrade_schema()
    handle = jobs.handle()
    handle.submit(ADD)
    assert handle.set_status("Running") is JobStatus.QUEUED
    assert jobs.count_by_status()[JobStatus.RUNNING] == 1
    assert [event.status for event in jobs.events(handle.job_id)] == ["Submitted", "Running"]
    assert jobs.sweep()
    jobs.close()
    with pytest.raises(SchemaError):
        jobs_of(empty_postgresql_url).find()
