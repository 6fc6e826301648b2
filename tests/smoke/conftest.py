"""The Docker engine, our image, and pytest-celery's containers around it.

pytest-celery parametrises a test by its brokers, and gives each test containers of its own. The image and a
PostgreSQL that both sides reach are made once.
"""

import fcntl
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any

import docker
import pytest
import pytest_docker_tools.wrappers.container
import sqlalchemy
from celery import Celery
from docker.errors import DockerException
from pytest_celery import (
    ALL_CELERY_BROKERS,
    CeleryTestBroker,
    CeleryTestSetup,
    CeleryWorkerContainer,
    RabbitMQContainer,
    RedisContainer,
)
from pytest_docker_tools import container, fxtr, network

from jobhandle_celery import Jobs
from tests.databases import PostgresqlDatabases
from tests.servers.places import free_port
from tests.smoke import bodies, worker_app
from tests.support import eventually, missing
from tests.workers import ROOT

SETTINGS = {
    "jobhandle_lease": 6,
    "jobhandle_sweep_interval": 0.2,
    "jobhandle_republish_after": 5,
    "jobhandle_publish_grace": 1,
    "worker_prefetch_multiplier": 1,
    "broker_connection_retry_on_startup": True,
}

VOLUME = "/smoke"
"""Where pytest-celery's files are in the worker container; in /app the image has its own."""


@pytest.fixture(scope="session")
def docker_client() -> docker.DockerClient:
    """The engine. Without one all that needs it is skipped; with `CI` set it fails."""
    try:
        client = docker.from_env()
        client.ping()
    except DockerException as error:
        missing(f"no Docker engine answers: {error}")
    return client


@pytest.fixture(scope="session")
def compose_command(docker_client: docker.DockerClient) -> list[str]:
    """docker-compose, or the engine's plug-in of that name."""
    for command in (["docker-compose"], ["docker", "compose"]):
        with suppress(OSError, subprocess.CalledProcessError):
            subprocess.run([*command, "version"], capture_output=True, check=True)
            return command
    return missing("docker-compose is not there")


@pytest.fixture(scope="session", autouse=True)
def _containers_are_reached_by_their_published_ports() -> Iterator[None]:
    # pytest-docker-tools takes any machine that has a /.dockerenv for a container beside the tests' own.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytest_docker_tools.wrappers.container, "tests_inside_container", lambda: False)
        yield


@pytest.fixture(scope="session")
def image(docker_client: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Our image, under the name that docker-compose.yml has for it.

    The first process of a test run builds it, the others wait and find every layer there.
    """
    with (tmp_path_factory.getbasetemp().parent / "image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        built, _ = docker_client.images.build(path=str(ROOT), tag="jobhandle-celery", rm=True)
    return built


# Of the session, as the database is.
default_pytest_celery_network = network(scope="session")


def _published(port: int) -> dict[str, tuple[str, int]]:
    """Publish a port on loopback, with a number that is the same when the container starts again."""
    return {f"{port}/tcp": ("127.0.0.1", free_port())}


# The brokers.


class Redis(RedisContainer):  # type: ignore[misc]  # they carry no types
    @classmethod
    def image(cls) -> str:
        return "redis:7"


class RabbitMQ(RabbitMQContainer):  # type: ignore[misc]  # pytest-celery is untyped
    @classmethod
    def image(cls) -> str:
        return "rabbitmq:4"

    @property
    def ready_prompt(self) -> str:
        # On standard output in every packaging; where the log goes differs.
        return " completed with "


@pytest.fixture
def default_redis_broker_cls() -> type[RedisContainer]:
    return Redis


@pytest.fixture
def default_redis_broker_ports() -> dict[str, Any]:
    return _published(6379)


@pytest.fixture
def default_rabbitmq_broker_cls() -> type[RabbitMQContainer]:
    return RabbitMQ


@pytest.fixture
def default_rabbitmq_broker_ports() -> dict[str, Any]:
    return _published(5672)


default_rabbitmq_broker = container(
    image="{default_rabbitmq_broker_image}",
    ports=fxtr("default_rabbitmq_broker_ports"),
    environment=fxtr("default_rabbitmq_broker_env"),
    network="{default_pytest_celery_network.name}",
    wrapper_class=RabbitMQ,
    timeout=120,
)


# pytest-celery's are in a set, whose order each process of a test run would have of its own.
@pytest.fixture(params=sorted(ALL_CELERY_BROKERS))
def celery_broker(request: pytest.FixtureRequest) -> Iterator[CeleryTestBroker]:
    broker: CeleryTestBroker = request.getfixturevalue(request.param)
    yield broker
    broker.teardown()


@pytest.fixture
def celery_backend_cluster() -> None:
    """None: results are in the rows."""


# The database.


@pytest.fixture(scope="session")
def postgres_ports() -> dict[str, Any]:
    return _published(5432)


postgres = container(
    scope="session",
    image="postgres:16",
    environment={"POSTGRES_PASSWORD": "of this test run alone", "LANG": "C.UTF-8"},
    ports=fxtr("postgres_ports"),
    network="{default_pytest_celery_network.name}",
    timeout=60,
)


@pytest.fixture(scope="session")
def databases(postgres: Any) -> PostgresqlDatabases:
    # Not by its socket: while the cluster is being made, only that answers.
    asked = ["pg_isready", "--host=127.0.0.1"]
    eventually(lambda: postgres.exec_run(asked).exit_code == 0, 60, "PostgreSQL does not answer")
    url = sqlalchemy.URL.create(
        "postgresql+psycopg",
        "postgres",
        postgres.env["POSTGRES_PASSWORD"],
        "127.0.0.1",
        postgres.ports["5432/tcp"][0],
        "postgres",
    )
    return PostgresqlDatabases(url.render_as_string(hide_password=False))


@pytest.fixture
def database_url(databases: PostgresqlDatabases) -> Iterator[str]:
    """A fresh migrated database, as it is reached from here."""
    url = databases.create()
    yield url
    databases.drop(url)


# The worker.


class OurWorker(CeleryWorkerContainer):  # type: ignore[misc]  # pytest-celery is untyped
    """Our image, running pytest-celery's app instead of its own."""

    @classmethod
    def app_module(cls) -> ModuleType:
        return worker_app

    @classmethod
    def tasks_modules(cls) -> set[ModuleType]:
        return {bodies}

    @classmethod
    def command(cls, *args: str, **options: Any) -> list[str]:
        command: list[str] = super().command("--concurrency=2", *args, **options)
        return command


default_worker_container = container(
    image="{image.id}",
    environment=fxtr("default_worker_env"),
    network="{default_pytest_celery_network.name}",
    volumes={"{default_worker_volume.name}": {"bind": VOLUME, "mode": "ro"}},
    wrapper_class=OurWorker,
    command=fxtr("default_worker_command"),
    timeout=60,
)


@pytest.fixture
def default_worker_container_cls() -> type[CeleryWorkerContainer]:
    return OurWorker


@pytest.fixture(scope="session")
def default_worker_container_session_cls() -> type[CeleryWorkerContainer]:
    return OurWorker


@pytest.fixture
def default_worker_env(
    default_worker_container_cls: type[CeleryWorkerContainer],
    celery_worker_cluster_config: dict[str, Any],
    database_url: str,
    postgres: Any,
) -> dict[str, str]:
    there = sqlalchemy.make_url(database_url).set(host=postgres.attrs["Config"]["Hostname"], port=5432)
    return {
        **default_worker_container_cls.initial_env(celery_worker_cluster_config),
        "PYTHONPATH": f"{VOLUME}:/app",
        "JOBHANDLE_DATABASE_URL": there.render_as_string(hide_password=False),
    }


# The test's own side.


class JobsSetup(CeleryTestSetup):  # type: ignore[misc]  # pytest-celery is untyped
    @classmethod
    def update_app_config(cls, app: Celery) -> None:
        app.conf.update(SETTINGS)


@pytest.fixture
def celery_setup_cls() -> type[CeleryTestSetup]:
    return JobsSetup


@pytest.fixture
def jobs(celery_setup: CeleryTestSetup, database_url: str) -> Iterator[Jobs]:
    """The jobs of this side; the worker's side has been ready for a while."""
    jobs = Jobs(celery_setup.app, database_url)
    yield jobs
    jobs.close()
    celery_setup.app.close()
