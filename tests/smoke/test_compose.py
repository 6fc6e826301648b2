"""`docker-compose up`, and its containers when they are scaled and stopped."""

import hashlib
import os
import re
import secrets
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.places import free_port
from tests.smoke.compose import Compose
from tests.support import eventually
from tests.workers import ROOT

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(600)]

OWNER = 12345
LOGIN = "ann:" + secrets.token_hex(8)
SERVICES = ("redis", "postgres", "worker", "flower")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is /data in the containers."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(40):
        (folder / f"{number}.bin").write_bytes(os.urandom(1000 * number))
    # Sparse; reading it takes minutes.
    with (folder.parent / "endless").open("wb") as endless:
        endless.truncate(2**40)
    _change_owner(folder)
    return folder


def _change_owner(folder: Path) -> None:
    if os.geteuid() == 0:
        for path in (folder, *folder.iterdir()):
            os.chown(path, OWNER, OWNER)


@pytest.fixture(scope="module")
def settings(data: Path) -> dict[str, str]:
    owner = f"{OWNER}:{OWNER}" if os.geteuid() == 0 else f"{os.geteuid()}:{os.getegid()}"
    return {
        "POSTGRES_PASSWORD": secrets.token_hex(24),
        "REDIS_PASSWORD": secrets.token_hex(24),
        "FLOWER_BASIC_AUTH": LOGIN,
        "DATA_FOLDER": str(data),
        "DATA_OWNER": owner,
        "FLOWER_PORT": str(free_port()),
        "SHUTDOWN_TIMEOUT": "3",
    }


@pytest.fixture(scope="module")
def up(
    compose_command: list[str],
    settings: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    image: Any,
) -> Iterator[Compose]:
    """All services, started; the layers of the image are built already."""
    folder = tmp_path_factory.mktemp("compose")
    compose = Compose(compose_command, f"jobhandle-test-{os.getpid()}", settings, folder)
    try:
        compose("up", "--build", "--detach", timeout=600)
        wait_until_healthy(compose, "flower")
        yield compose
    finally:
        compose("down", "--volumes", "--timeout=5")


def wait_until_healthy(compose: Compose, service: str) -> None:
    (container,) = compose.containers(service)

    def health() -> str:
        return str(container.inspect()["State"]["Health"]["Status"])

    eventually(lambda: health() == "healthy", 180, f"{service} is not healthy")


def wait_until_ready(compose: Compose, workers: int) -> None:
    containers = compose.containers("worker")
    assert len(containers) == workers
    eventually(lambda: all(re.search(r"celery@\w+ ready", container.logs()) for container in containers))


def test_demo_writes_its_manifest(up: Compose, data: Path) -> None:
    output = up("run", "--rm", "-T", "worker", "python", "-m", "tasks", "/data")

    assert "40 files in /data: 40 jobs to run" in output
    lines = (data / "manifest-sha256.txt").read_text().splitlines()
    digests = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert digests == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in data.glob("*.bin")
    }


def example() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))


def test_example_with_its_empty_values_filled_in_is_complete(
    compose_command: list[str], tmp_path: Path
) -> None:
    filled = {name: value or "filled" for name, value in example().items()}

    assert "filled" in Compose(compose_command, "jobhandle-test", filled, tmp_path)("config")


@pytest.mark.parametrize("missing", example())
def test_missing_setting_is_refused(
    compose_command: list[str], settings: dict[str, str], missing: str, tmp_path: Path
) -> None:
    compose = Compose(compose_command, "jobhandle-test", {**settings, missing: ""}, tmp_path)

    refused = compose.attempt("config")

    assert refused.returncode != 0
    assert missing in refused.stderr
    assert "see .env.example" in refused.stderr


def test_ports_are_published_on_loopback_only(up: Compose) -> None:
    published = [
        binding["HostIp"]
        for service in SERVICES
        for container in up.containers(service)
        for bindings in container.inspect()["NetworkSettings"]["Ports"].values()
        for binding in bindings or []
    ]

    assert published == ["127.0.0.1"]


def test_flower_requires_its_login(up: Compose, settings: dict[str, str]) -> None:
    url = f"http://127.0.0.1:{settings['FLOWER_PORT']}/api/workers"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url, timeout=20)

    known = urllib.request.Request(
        url, headers={"Authorization": f"Basic {b64encode(LOGIN.encode()).decode()}"}
    )
    with urllib.request.urlopen(known, timeout=20) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("service", ["worker", "flower"])
def test_containers_run_without_privileges(up: Compose, service: str, settings: dict[str, str]) -> None:
    user = up("exec", "-T", service, "sh", "-c", "echo $(id -u):$(id -g)").strip()
    assert user == settings["DATA_OWNER"]
    refused = up.attempt("exec", "-T", service, "touch", "/app/tasks/new")
    assert "Read-only file system" in refused.stderr


def test_redis_keeps_its_data_when_it_is_killed(up: Compose) -> None:
    up("exec", "-T", "redis", "redis-cli", "set", "kept", "yes")
    up("kill", "redis")
    up("up", "--detach", "redis")

    eventually(lambda: up("exec", "-T", "redis", "redis-cli", "get", "kept").strip() == "yes")


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_becomes_healthy(up: Compose, service: str) -> None:
    wait_until_healthy(up, service)


def test_workers_are_scaled_and_give_jobs_back_when_stopped(up: Compose, data: Path) -> None:
    (data.parent / "endless").rename(data / "endless")
    _change_owner(data)
    up("up", "--detach", "--scale", "worker=3")
    wait_until_ready(up, 3)
    short, endless = submit(up, "1.bin"), submit(up, "endless")
    read_job(up, endless, once="job.status == 'Running'")

    up("stop", "worker")

    assert read_job(up, short)["status"] == "Finished"
    stopped = read_job(up, endless)
    assert stopped["moves"][:3] == ["Submitted", "Running", "Requeued"]
    assert {container.inspect()["State"]["ExitCode"] for container in up.containers("worker")} == {0}

    up("up", "--detach", "--scale", "worker=1")
    read_job(up, endless, once="job.attempt == 2")
    assert up.python(f"print(json.dumps(jobs.attach({endless}).cancel_job()))") == "Running"
    read_job(up, endless, once="job.status == 'Cancelled'")


def submit(up: Compose, name: str) -> int:
    job_id: int = up.python(
        f"handle = jobs.handle(); print(handle.submit(Job(task='tasks.checksum', args=['/data/{name}'])))"
    )
    return job_id


def read_job(up: Compose, job_id: int, once: str = "True") -> dict[str, Any]:
    """Read a job once it fulfils a condition: in one process, to import the app once."""
    answer: dict[str, Any] = up.python(
        f"handle = jobs.attach({job_id}); job = handle.get_job()\n"
        f"while not ({once}): time.sleep(0.1); job = handle.get_job()\n"
        f"moves = [event.status for event in jobs.events({job_id})]\n"
        "print(json.dumps({'status': job.status, 'attempt': job.attempt, 'moves': moves}))"
    )
    return answer
