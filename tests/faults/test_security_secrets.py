"""The password in a database URL is in no error, no repr and no log, whatever goes wrong."""

import contextlib
import io
import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy
from celery import Celery
from sqlalchemy.exc import ArgumentError

from jobhandle_celery import Job, Jobs
from tests.conftest import WORKERS
from tests.reaper import Reaper
from tests.support import eventually
from tests.workers import WorkerProcess

pytestmark = pytest.mark.faults

SECRET = "hunter2-is-no-secret"
NOWHERE = f"postgresql+psycopg://ann:{SECRET}@127.0.0.1:1/shop"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """All log records of all loggers, at any level, with tracebacks."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


def error_text(call: Callable[[], object]) -> str:
    """Return the text of an error and its causes, as a log would show it."""
    try:
        call()
    except Exception as error:
        shown = ""
        chain: BaseException | None = error
        while chain is not None:
            shown += f"{chain!r} {chain} {chain.args!r}\n"
            chain = chain.__cause__ or chain.__context__
        return shown + "".join(traceback.format_exception(error))
    raise AssertionError("it went well")


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg://ann:{SECRET}@host:port/shop",
        f"postgresql+psycopg://ann:{SECRET}@[/shop",
        f"nosuchdatabase://ann:{SECRET}@host/shop",
        f"postgresql+nosuchdriver://ann:{SECRET}@host/shop",
        f"postgresql+asyncpg://ann:{SECRET}@host/shop",
        f"oracle://ann:{SECRET}@host/shop",
        f"mysql+aiomysql://ann:{SECRET}@host/shop",
        f"ann:{SECRET}@host",
        f"sqlite://ann:{SECRET}@/:memory:",
        f"postgresql//ann:{SECRET}@host/shop",
    ],
)
def test_unusable_url_is_rejected_without_its_password(log: io.StringIO, url: str) -> None:
    def use(database: Any, setting: str | None) -> None:
        app: Any = Celery("secretive", broker="memory://", set_as_current=False)
        app.conf.jobhandle_database_url = setting
        Jobs(app, database).find()

    given = [lambda: use(url, None), lambda: use(None, url)]
    with contextlib.suppress(ArgumentError, ValueError):  # otherwise the text alone
        parsed = sqlalchemy.make_url(url)
        given.append(lambda: use(parsed, None))
    for call in given:
        assert SECRET not in error_text(call)
    assert SECRET not in log.getvalue()


def test_unreachable_database_is_named_without_its_password(log: io.StringIO) -> None:
    app: Any = Celery("secretive", broker="memory://", set_as_current=False)
    jobs = Jobs(app, NOWHERE)
    handle = jobs.handle(username="ann")
    calls: list[Callable[[], object]] = [
        lambda: handle.submit(Job(task="tests.add", args=[1, 2])),
        lambda: jobs.submit_many([Job(task="tests.add", args=[1, 2])]),
        lambda: handle.attach(1),
        jobs.find,
        lambda: jobs.events(1),
        jobs.count_by_status,
        lambda: jobs.cancel_many(ids=[1]),
        jobs.sweep,
        lambda: jobs.prune(0),
        jobs.upgrade_schema,
    ]
    for call in calls:
        message = error_text(call)
        assert SECRET not in message
        assert "127.0.0.1" in message, "the unreachable host should be named"
    for shown in (jobs, handle, app, jobs._runtime, jobs._runtime.store.database, jobs._runtime.store):
        assert SECRET not in repr(shown)
    assert SECRET not in log.getvalue()
    jobs.close()


def test_rejected_statements_are_reported_without_the_password(
    empty_postgresql_url: str, log: io.StringIO
) -> None:
    url = sqlalchemy.make_url(empty_postgresql_url)
    password = str(url.password or "")
    for wrong in (url, url.set(database="no_such_database"), url.set(username="nobody_of_that_name")):
        app: Any = Celery("secretive", broker="memory://", set_as_current=False)
        jobs = Jobs(app, wrong if password else wrong.set(password=SECRET))
        message = error_text(jobs.find)
        assert SECRET not in message
        assert not password or password not in message
        jobs.close()
    assert SECRET not in log.getvalue()
    assert not password or password not in log.getvalue()


def test_worker_without_database_logs_no_password(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    reaper: Reaper,
    redis_url: str,
    sqlite_url: str,
    workers_temporary_folder: Path,
) -> None:
    # A job's message arrives from a client that reaches a database.
    client: Any = Celery("client", broker=redis_url, set_as_current=False)
    jobs = Jobs(client, sqlite_url)
    jobs.handle().submit(Job(task="tests.add", args=[1, 2]))
    worker = WorkerProcess(
        folder=tmp_path,
        reaper=reaper,
        database_url=NOWHERE,
        broker_url=redis_url,
        concurrency=1,
        arguments=["--loglevel=DEBUG"],
        environment={"TMPDIR": str(workers_temporary_folder)},
    )
    request.node.stash[WORKERS] = [worker]
    try:
        eventually(lambda: "did not answer" in worker.log or not worker.is_running(), 60)
        with redis.Redis.from_url(redis_url) as broker:
            eventually(lambda: not worker.is_running() or not broker.llen("celery"), 30)
    finally:
        worker.end()
        jobs.close()
        client.close()
    assert "127.0.0.1" in worker.log
    assert SECRET not in worker.log
