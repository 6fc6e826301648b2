"""Wrong settings, database URLs and schemas: each error says what to do, none shows a password."""

import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy
from celery import Celery
from celery.contrib.testing.worker import start_worker

from jobhandle_celery import (
    ConfigurationError,
    DatabaseUnavailableError,
    Job,
    JobHandleError,
    Jobs,
    JobStatus,
    SchemaError,
    UnknownJobError,
)
from jobhandle_celery.settings import NAMES, Settings, ignored, read
from jobhandle_celery.worker import bootstep
from tests.apps import make_app
from tests.databases import PostgresqlDatabases
from tests.servers import execute

SECRET = "hunter2-hunter2"
ADD = Job(task="tests.add", args=[1, 2])


@pytest.fixture(autouse=True)
def _password_is_not_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.DEBUG):
        yield
    assert SECRET not in caplog.text


def jobs_of(database: Any, **settings: Any) -> Any:
    return Jobs(make_app("memory://", None, settings), database)


def shown_text(error: BaseException) -> str:
    """Return all that a log would show of an error and its causes."""
    shown = "".join(traceback.format_exception(error))
    chain: BaseException | None = error
    while chain is not None:
        shown += f"{chain!r} {chain.args!r}\n"
        chain = chain.__cause__ or chain.__context__
    return shown


# Settings.


def test_unknown_settings_are_found_with_nearest_name() -> None:
    class DjangoSettings:
        CELERY_JOBHANDLE_LEESE = 4
        CELERY_JOBHANDLE_LEASE = 30
        JOBHANDLE_OF_THE_SITE = 2

    app = Celery("settings", set_as_current=False)
    app.config_from_object(DjangoSettings, namespace="CELERY")
    assert ignored(app.conf) == {"CELERY_JOBHANDLE_LEESE": "jobhandle_lease"}
    app = make_app("memory://", None, {f"jobhandle_{name}": None for name in NAMES})
    assert ignored(app.conf) == {}
    app.conf.update(jobhandle_durabel=True, jobhandle_xyz=1, my_jobhandle_key=1)
    assert ignored(app.conf) == {"jobhandle_durabel": "jobhandle_durable", "jobhandle_xyz": None}


def test_worker_logs_unknown_settings(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    monkeypatch.setattr(bootstep.logger, "warning", lambda text, *args: logged.append(text % args))
    app = make_app("memory://", sqlite_url, {"jobhandle_leese": 5})
    with start_worker(app, pool="solo", perform_ping_check=False):
        pass
    assert "the configuration has jobhandle_leese, which is no setting of jobhandle-celery" in logged
    app.jobs.close()  # type: ignore[attr-defined]  # made by Jobs


def test_settings_have_the_defaults_of_the_design() -> None:
    assert read(lambda key: None) == Settings(
        lease=timedelta(seconds=60),
        sweep_interval=timedelta(seconds=1),
        republish_after=timedelta(seconds=60),
        publish_grace=timedelta(seconds=5),
        namespace="default",
        schema=None,
        progress_events=True,
        fast_publish=True,
    )


def test_republish_delay_doubles_to_a_quarter_of_an_hour() -> None:
    delays = [Settings().republish_delay(publish_count).total_seconds() / 60 for publish_count in range(1, 8)]
    assert delays == [1, 2, 4, 8, 15, 15, 15]
    assert Settings().republish_delay(10**9) == timedelta(minutes=15)
    assert Settings(republish_after=timedelta(hours=1)).republish_delay(5) == timedelta(hours=1)


def test_durations_are_seconds_or_timedeltas() -> None:
    given = {
        "jobhandle_lease": 30,
        "jobhandle_publish_grace": 0.5,
        "jobhandle_republish_after": timedelta(minutes=2),
    }
    settings = read(given.get)
    assert settings.lease == timedelta(seconds=30)
    assert settings.publish_grace == timedelta(seconds=0.5)
    assert settings.republish_after == timedelta(minutes=2)


@pytest.mark.parametrize("key", ["lease", "sweep_interval", "republish_after", "publish_grace"])
def test_bad_duration_is_refused_by_name(key: str) -> None:
    for value in (0, -1, "60", True, float("nan"), float("inf"), 10**400, timedelta(0), [60]):
        with pytest.raises(ConfigurationError, match=f"jobhandle_{key}: .*accepted"):
            read({f"jobhandle_{key}": value}.get)


@pytest.mark.parametrize("key", ["namespace", "schema"])
def test_bad_name_is_refused_by_name(key: str) -> None:
    for value in ("", "x" * 64, 5, True, ["a"]):
        with pytest.raises(ConfigurationError, match=f"jobhandle_{key}: .*accepted"):
            read({f"jobhandle_{key}": value}.get)


@pytest.mark.parametrize("name", ["progress_events", "fast_publish"])
def test_switch_accepts_true_or_false_only(name: str) -> None:
    assert getattr(read({f"jobhandle_{name}": False}.get), name) is False
    with pytest.raises(ConfigurationError, match=rf"jobhandle_{name}: .*accepted"):
        read({f"jobhandle_{name}": "no"}.get)


def test_bad_setting_comes_out_at_the_first_use(sqlite_url: str) -> None:
    jobs = jobs_of(sqlite_url, jobhandle_lease=-1)
    for use in (jobs.handle, jobs.count_by_status, jobs.sweep, jobs.upgrade_schema):
        with pytest.raises(ConfigurationError, match="jobhandle_lease"):
            use()


def test_settings_from_any_source_count_until_first_use(sqlite_url: str) -> None:
    app = Celery("late", broker="memory://", set_as_current=False)
    jobs = Jobs(app)
    app.conf.jobhandle_database_url = sqlite_url
    app.conf.jobhandle_namespace = "late"
    job_id = jobs.handle().submit(Job(task="nobody.knows"))
    jobs.close()
    settings = SimpleNamespace(
        CELERY_JOBHANDLE_DATABASE_URL=sqlite_url,
        CELERY_JOBHANDLE_NAMESPACE="late",
        CELERY_BROKER_URL="memory://",
    )
    django = Celery("django", set_as_current=False)
    its_jobs = Jobs(django)
    django.config_from_object(settings, namespace="CELERY")
    assert its_jobs.attach(job_id).job_status() is JobStatus.QUEUED
    its_jobs.close()
    default = jobs_of(sqlite_url)
    with pytest.raises(UnknownJobError):
        default.attach(job_id)
    default.close()


# Databases.


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
    job_id = jobs.handle().submit(Job(task="nobody.knows"))
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
        (right.set(username="nobody_of_that_name"), "nobody_of_that_name"),
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


# Schemas.


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
    for use in [*uses_of(jobs), jobs.upgrade_schema]:
        with pytest.raises(SchemaError, match=r"9999.*newer.*pip install --upgrade jobhandle-celery"):
            use()
    assert execute(database_url, "SELECT count(*) FROM jobhandle_job") == [(0,)]
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
