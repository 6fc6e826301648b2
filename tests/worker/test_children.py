"""Detection of ended pool processes by a worker's main process."""

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from jobhandle_celery.worker.deferred_writes import has_ended
from tests.support import eventually


@pytest.fixture(params=["waitid", "ps"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The two ways; Python has no `os.waitid` on macOS before 3.13 (fault 2)."""
    if request.param == "ps":
        if shutil.which("ps") is None:
            pytest.skip("no ps on the PATH")
        monkeypatch.delattr(os, "waitid", raising=False)
    elif not hasattr(os, "waitid"):
        pytest.skip("this Python has no os.waitid")
    return str(request.param)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_has_ended_of_a_child_follows_its_life(way: str, child: "subprocess.Popen[bytes]") -> None:
    assert not has_ended(child.pid)
    child.kill()
    eventually(lambda: has_ended(child.pid))  # a zombie
    assert child.wait() == -9  # it was not reaped
    assert has_ended(child.pid)


def test_has_ended_of_another_process_is_true(way: str) -> None:
    assert has_ended(os.getppid())
    assert has_ended(1)
