"""The processes of a test run share their servers; tests of a missing server are deselected."""

import subprocess
import sys
from pathlib import Path

import pytest
import redis

from tests.reaper import Reaper
from tests.servers import SharedServers, absent
from tests.servers.places import on_path
from tests.support import eventually
from tests.workers import ROOT

FIRST_PROCESS = """
import sys
from pathlib import Path
from tests.reaper import Reaper
from tests.servers import SharedServers, own_redis
reaper = Reaper()
print(SharedServers(Path(sys.argv[1]), reaper, main=False).find("redis", own_redis).url)
reaper.close()
"""


@pytest.mark.usefixtures("private_redis")  # deselected where there is no program
def test_shared_server_ends_with_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "servers"
    folder.mkdir()
    main = Reaper()
    main.watch_notes(folder)
    command = [sys.executable, "-c", FIRST_PROCESS, str(folder)]
    started = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)

    def start_none(_: Reaper) -> None:
        raise AssertionError("there is one")

    second = SharedServers(folder, main, main=False)
    found = second.find("redis", start_none)  # type: ignore[arg-type]  # it starts none
    assert found.url == started.stdout.strip()
    assert _answers(found.url)

    main.close()

    eventually(lambda: not _answers(found.url), message="the server's end")
    assert not folder.exists()


def test_missing_server_deselects_its_tests(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = request.node
    assert not absent.needs_absent(item)
    monkeypatch.setattr(absent, "ABSENT", {"redis": absent.SERVERS["redis"]})
    monkeypatch.setattr(item, "fixturenames", [*item.fixturenames, "redis_server_url"])
    assert absent.needs_absent(item)
    [line] = absent.lines()
    assert "redis" in line


@pytest.mark.parametrize("name", ["no program of this name"])
def test_parameter_naming_a_missing_server_deselects(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    kind = absent.Kind(lambda: on_path(name), "install it", frozenset())
    assert not kind.is_here
    monkeypatch.setattr(absent, "ABSENT", {name: kind})
    assert absent.needs_absent(request.node)


def _answers(url: str) -> bool:
    with redis.Redis.from_url(url, socket_timeout=5) as client:
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False
