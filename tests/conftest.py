"""Fixtures for all tests: servers, workers, apps; `tests.database_fixtures` has those of databases.

The processes of pytest-xdist share one server of each kind, and each has databases, logical databases and
virtual hosts of its own there. A server named in the environment (`JOBHANDLE_TEST_REDIS_URL`,
`JOBHANDLE_TEST_POSTGRESQL_URL`, `JOBHANDLE_TEST_MARIADB_URL`, `JOBHANDLE_TEST_RABBITMQ_URL`) is used instead,
and nothing in it is touched but what the tests made. The tests of a server that is not there are deselected
(see `tests.servers.absent`).
"""

import gc
import logging
import os
import re
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy
from celery import _state
from hypothesis import HealthCheck, settings
from kombu.transport import memory

from tests.apps import make_app
from tests.compiled_statements import share_compiled_statements
from tests.job_factory import JobFactory
from tests.reaper import Reaper
from tests.servers import (
    Management,
    MariadbServer,
    PostgresqlServer,
    Reached,
    RedisServer,
    Server,
    SharedServers,
    VirtualHosts,
    absent,
    own_mariadb,
    own_postgresql,
    own_rabbitmq,
    own_redis,
)
from tests.shop import Shop
from tests.workers import WORKERS, WorkerProcess

# With PYTHONDONTWRITEBYTECODE, as in many containers, each of some hundred processes would
# compile the library anew, and each of pytest's rewrite every test: as many CPU seconds as a minute has.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A process that is started in the background (`nohup`) ignores Ctrl-C, and so do its children: those of the
# tests must not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: on a busy machine any example may take long.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

# Before anything imports them.
for _name in ("assertions", "crash_machine", "scenario", "state_machine"):
    pytest.register_assert_rewrite(f"tests.store.{_name}")

pytest_plugins = ["tests.database_fixtures"]

REAPER = pytest.StashKey[Reaper]()
SHARED = pytest.StashKey[SharedServers]()
FOLDER = "jobhandle_servers_folder"
"""Key under which a process of pytest-xdist gets the folder of the shared servers."""


def pytest_configure(config: pytest.Config) -> None:
    absent.check()
    share_compiled_statements()
    reaper = config.stash[REAPER] = Reaper()
    given = getattr(config, "workerinput", {}).get(FOLDER)
    folder = given or tempfile.mkdtemp(prefix="jobhandle-test-servers-")
    if not given:
        reaper.watch_notes(Path(folder))
    config.stash[SHARED] = SharedServers(Path(folder), reaper, main=not given)


def pytest_unconfigure(config: pytest.Config) -> None:
    if REAPER in config.stash:
        config.stash[SHARED].close()
        config.stash[REAPER].close()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass the folder of the shared servers to a process of pytest-xdist."""
    node.workerinput[FOLDER] = str(node.config.stash[SHARED].folder)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import the modules of a folder that has a marker of its own only if `-m` selects it.

    An environment lacks what those of another dependency group need, and to import and count the tests of the
    faults takes each process of pytest-xdist a second.
    """
    folder, selected = collection_path.name, config.option.markexpr
    if collection_path.parent != Path(__file__).parent:
        return None
    if folder in ("ecosystem", "flower", "smoke"):
        return None if re.search(rf"(?<!not )\b{folder}\b", selected) else True
    return True if folder == "faults" and "not faults" in selected else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Freeze what was imported and collected, which lives until the end.

    A full garbage collection that visits it takes 0.3 s, and pytest makes ten at the end of each process.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        _unshare_tasks()
        gc.freeze()
        gc.enable()


def _unshare_tasks() -> None:
    """Keep the tasks of the modules' apps out of the apps of the tests.

    Celery adds them to each app that it finalizes later: a tenth of the processor time of all tests.
    """
    state: Any = _state
    state._on_app_finalizers = {
        finalizer
        for finalizer in state._on_app_finalizers
        if not finalizer.__qualname__.startswith("Celery.task.")  # those of Celery itself, and `shared_task`
    }


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests of servers that are not there."""
    if gone := [item for item in items if absent.needs_absent(item)]:
        config.hook.pytest_deselected(items=gone)
        items[:] = [item for item in items if not absent.needs_absent(item)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in absent.lines():
        terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def _celery_is_left_as_it_was() -> Iterator[None]:
    """Undo changes of a test to Celery's module state; Celery has no public way to do that.

    Celery gives each app the tasks of all apps before it, unless they are declared `shared=False`. A pool
    that a test makes in this process forbids to wait for results in it. And a worker sets the level of the
    root logger, below which later tests would see no message.
    """
    state: Any = _state
    level = logging.root.level
    finalizers = set(state._on_app_finalizers)
    blocks = state.task_join_will_block()
    yield
    state._on_app_finalizers &= finalizers
    state._set_task_join_will_block(blocks)
    logging.root.setLevel(level)


@pytest.fixture(scope="session")
def reaper(pytestconfig: pytest.Config) -> Reaper:
    return pytestconfig.stash[REAPER]


@pytest.fixture(scope="session")
def redis_server_url(pytestconfig: pytest.Config) -> str:
    given = os.environ.get("JOBHANDLE_TEST_REDIS_URL")
    return given or _shared(pytestconfig, "redis", own_redis).url


@pytest.fixture(scope="session")
def postgresql_server_url(pytestconfig: pytest.Config) -> str:
    """The URL of a superuser, or of a user who may create databases."""
    given = os.environ.get("JOBHANDLE_TEST_POSTGRESQL_URL")
    if given:
        return _by_driver(given, "postgresql+psycopg")
    return _shared(pytestconfig, "postgresql", own_postgresql).url


@pytest.fixture(scope="session")
def mariadb_server_url(pytestconfig: pytest.Config) -> str:
    """The URL of a user who may create databases and end other users' connections."""
    given = os.environ.get("JOBHANDLE_TEST_MARIADB_URL")
    if given:
        return _by_driver(given, "mariadb+pymysql")
    return _shared(pytestconfig, "mariadb", own_mariadb).url


@pytest.fixture(scope="session")
def virtual_hosts(pytestconfig: pytest.Config) -> Iterator[VirtualHosts]:
    """A RabbitMQ, given or our own, in which nothing is touched but virtual hosts that the tests made.

    Those of a given one are made through its management plugin, at `JOBHANDLE_TEST_RABBITMQ_MANAGEMENT_URL`,
    or at port 15672.
    """
    given = os.environ.get("JOBHANDLE_TEST_RABBITMQ_URL")
    if given:
        elsewhere = os.environ.get("JOBHANDLE_TEST_RABBITMQ_MANAGEMENT_URL")
        hosts = VirtualHosts(given, Management.of(given, elsewhere))
        yield hosts
        hosts.remove()
        return
    own = _shared(pytestconfig, "rabbitmq", own_rabbitmq)
    yield VirtualHosts(own.url, Management(*own.management))


@pytest.fixture
def rabbitmq_url(virtual_hosts: VirtualHosts) -> str:
    """An empty virtual host of a RabbitMQ."""
    return virtual_hosts.create()


@pytest.fixture
def private_redis(reaper: Reaper) -> Iterator[RedisServer]:
    """A running Redis for this test alone, which it may stop, kill, pause and restart."""
    server = absent.started("redis", own_redis, reaper)
    yield server
    server.discard()


@pytest.fixture
def private_postgresql(reaper: Reaper) -> Iterator[PostgresqlServer]:
    """A running, empty PostgreSQL for this test alone, which it may stop, kill, pause and restart."""
    server = absent.started("postgresql", own_postgresql, reaper)
    yield server
    server.discard()


@pytest.fixture
def private_mariadb(reaper: Reaper) -> Iterator[MariadbServer]:
    """A running, empty MariaDB for this test alone, which it may stop, kill, pause and restart."""
    server = absent.started("mariadb", own_mariadb, reaper)
    yield server
    server.discard()


@pytest.fixture(scope="session")
def redis_database_url(redis_server_url: str) -> str:
    """A logical database for this process of the test run, found empty."""
    return _logical_database(redis_server_url, 1)


@pytest.fixture(scope="session")
def second_redis_url(redis_server_url: str) -> str:
    """Another one, for a cluster beside that of the module."""
    return _logical_database(redis_server_url, 2)


def _logical_database(server_url: str, place: int) -> str:
    number = place + 2 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    url = sqlalchemy.make_url(server_url).set(database=str(number)).render_as_string(hide_password=False)
    with redis.Redis.from_url(url) as client:
        if client.dbsize():
            pytest.fail(
                f"the tests would flush logical database {number} of the given Redis, which is not empty"
            )
    return url


@pytest.fixture
def redis_url(redis_database_url: str) -> Iterator[str]:
    """An empty logical database of Redis, flushed after the test and its workers."""
    yield redis_database_url
    with redis.Redis.from_url(redis_database_url) as client:
        client.flushdb()


@pytest.fixture(autouse=True)
def empty_memory_broker() -> None:
    """Empty the queues of `memory://`, which all apps of a process share (fault 3)."""
    memory.Channel.queues.clear()
    memory.Transport.global_state.clear()


@pytest.fixture
def broker_url(redis_url: str) -> str:
    return redis_url


@pytest.fixture(scope="session")
def workers_temporary_folder(reaper: Reaper) -> Path:
    """The temporary folder of workers, removed for killed ones; a short path, since sockets need one."""
    folder = Path(tempfile.mkdtemp(prefix="jobhandle-test-workers-"))
    reaper.remove_folder(folder)
    return folder


@pytest.fixture
def start_worker(
    request: pytest.FixtureRequest, tmp_path: Path, workers_temporary_folder: Path, reaper: Reaper
) -> Iterator[Callable[..., WorkerProcess]]:
    """Start real workers: `start_worker(database_url=…, broker_url=…, pool="prefork", …)`.

    The options are those of `WorkerProcess`. Each worker is ready when the call returns (unless
    `ready=False`), and killed at the end of the test.
    """
    workers = request.node.stash[WORKERS] = []

    def start(app: str = "tests.apps:app", *, ready: bool = True, **options: Any) -> WorkerProcess:
        environment = {"TMPDIR": str(workers_temporary_folder), **options.pop("environment", {})}
        worker = WorkerProcess(app, folder=tmp_path, reaper=reaper, environment=environment, **options)
        workers.append(worker)
        if ready:
            worker.wait_until_ready()
        return worker

    yield start
    for worker in workers:
        worker.end()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Show the logs of the workers of a failed test."""
    report = yield
    if report.failed:
        for worker in item.stash.get(WORKERS, []):
            report.sections.append((f"{worker.nodename}, process {worker.pid}", worker.log))
    return report


def _shared(config: pytest.Config, name: str, start: Callable[[Reaper], Server]) -> Reached:
    """Return how the test run's server of a kind is reached."""
    with absent.skip_or_fail(name):
        return config.stash[SHARED].find(name, start)


def _by_driver(given: str, driver: str) -> str:
    return sqlalchemy.make_url(given).set(drivername=driver).render_as_string(hide_password=False)


@pytest.fixture
def factory(database_url: str) -> Iterator[JobFactory]:
    factory = JobFactory(database_url)
    yield factory
    factory.close()


@pytest.fixture
def sqlite_factory(sqlite_url: str) -> Iterator[JobFactory]:
    """A factory for what does not depend on the kind of database."""
    factory = JobFactory(sqlite_url)
    yield factory
    factory.close()


@pytest.fixture
def make_jobs_app() -> Iterator[Callable[..., Any]]:
    """Make apps with jobs: `make_jobs_app(database, broker="memory://", **settings)`; closed at the end.

    Each has a queue of its own: the memory transport is one for the whole process.
    """
    made: list[Any] = []

    def make(database: Any, broker: str = "memory://", **settings: Any) -> Any:
        queue = {"task_default_queue": f"queue-{uuid.uuid4().hex}"}
        made.append(make_app(broker, database, queue | settings))
        return made[-1]

    yield make
    for app in made:
        app.jobs.close()


@pytest.fixture
def shop(database_url: str) -> Iterator[Shop]:
    shop = Shop(database_url)
    yield shop
    shop.close()
