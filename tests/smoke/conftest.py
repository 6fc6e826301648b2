"""The Docker engine, the image of the demo, and pytest-celery's containers.

pytest-celery parametrises a test by its brokers, and starts new containers for each test. The image is built
once, and PostgreSQL, which the tests and the workers share, is started once.
"""

import fcntl
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
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
    RabbitMQTestBroker,
    RedisContainer,
)
from pytest_docker_tools import container, fxtr, network

from jobhandle_celery import Jobs
from tests.databases import PostgresqlDatabases
from tests.documentation import blocks
from tests.servers.places import free_port
from tests.smoke import bodies
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
"""The folder of pytest-celery's files in the worker container; /app has the image's own."""


@pytest.fixture(scope="session")
def docker_client() -> docker.DockerClient:
    """The Docker engine. Without one, tests that need it are skipped; with `CI` set they fail."""
    try:
        client = docker.from_env()
        client.ping()
    except DockerException as error:
        missing(f"no Docker engine answers: {error}")
    return client


@pytest.fixture(scope="session")
def compose_command(docker_client: docker.DockerClient) -> list[str]:
    """docker-compose, or the plug-in `docker compose`."""
    for command in (["docker-compose"], ["docker", "compose"]):
        with suppress(OSError, subprocess.CalledProcessError):
            subprocess.run([*command, "version"], capture_output=True, check=True)
            return command
    return missing("docker-compose is not installed")


@pytest.fixture(scope="session", autouse=True)
def _containers_are_reached_by_their_published_ports() -> Iterator[None]:
    # pytest-docker-tools takes a machine with /.dockerenv for a container on the same network.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytest_docker_tools.wrappers.container, "tests_inside_container", lambda: False)
        yield


@pytest.fixture(scope="session")
def image(docker_client: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The image, with the name that docker-compose.yml uses.

    The first process of a test run builds it; the others wait, and find its layers.
    """
    with (tmp_path_factory.getbasetemp().parent / "image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        built, _ = docker_client.images.build(path=str(ROOT), tag="jobhandle-celery", rm=True)
    return built


# With the scope of the database.
default_pytest_celery_network = network(scope="session")


def _published(port: int) -> dict[str, tuple[str, int]]:
    """Publish a port on loopback; the number stays the same when the container restarts."""
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
        # Every image prints this to standard output; the log may go elsewhere.
        return " completed with "


@pytest.fixture
def default_redis_broker_cls() -> type[RedisContainer]:
    return Redis


@pytest.fixture
def default_redis_broker_ports() -> dict[str, Any]:
    return _published(6379)


@pytest.fixture(scope="session")
def default_rabbitmq_broker_ports() -> dict[str, Any]:
    return _published(5672)


# One for all tests: it needs eight seconds of processor time to start.
default_rabbitmq_broker = container(
    scope="session",
    image=RabbitMQ.image(),
    ports=fxtr("default_rabbitmq_broker_ports"),
    environment=RabbitMQ.initial_env(),
    network="{default_pytest_celery_network.name}",
    wrapper_class=RabbitMQ,
    timeout=120,
)


@pytest.fixture
def celery_rabbitmq_broker(default_rabbitmq_broker: RabbitMQ) -> CeleryTestBroker:
    """RabbitMQ, without the messages of an earlier test, whose worker has ended."""
    with default_rabbitmq_broker.client as connection:
        connection.default_channel.queue_delete(OurWorker.worker_queue())
    return RabbitMQTestBroker(default_rabbitmq_broker)


# pytest-celery has them in a set; its order differs between the processes of a test run.
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
    # By TCP: while the cluster is initialised, only the socket answers.
    ready = ["pg_isready", "--host=127.0.0.1"]
    eventually(lambda: postgres.exec_run(ready).exit_code == 0, message="PostgreSQL does not answer")
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
    """A new migrated database, with its URL for the tests."""
    url = databases.create()
    yield url
    databases.drop(url)


# The worker.


class OurWorker(CeleryWorkerContainer):  # type: ignore[misc]  # pytest-celery is untyped
    """A container of the image with the app of the documentation."""

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
def default_worker_app_module(tmp_path: Path) -> ModuleType:
    """The module of the documentation, from a file: pytest-celery reads its source."""
    page = blocks("docs/how-to/testing-with-a-worker.md", "python")
    (code,) = (block.code for block in page if block.file == "worker_app.py")
    path = tmp_path / "worker_app.py"
    path.write_text(code)
    spec = spec_from_file_location("worker_app", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


# The client.


class JobsSetup(CeleryTestSetup):  # type: ignore[misc]  # pytest-celery is untyped
    @classmethod
    def update_app_config(cls, app: Celery) -> None:
        app.conf.update(SETTINGS)


@pytest.fixture
def celery_setup_cls() -> type[CeleryTestSetup]:
    return JobsSetup


@pytest.fixture
def jobs(celery_setup: CeleryTestSetup, database_url: str) -> Iterator[Jobs]:
    """The jobs of the client; the worker is ready."""
    jobs = Jobs(celery_setup.app, database_url)
    yield jobs
    jobs.close()
    celery_setup.app.close()
