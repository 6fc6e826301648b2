"""The servers of the other tests answer, are fresh, and can be stopped and restarted."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.reaper import Reaper
from tests.servers import execute
from tests.support import eventually


def test_postgresql_answers_with_a_version_that_we_support(postgresql_server_url: str) -> None:
    [(version,)] = execute(postgresql_server_url, "SHOW server_version_num")

    assert int(version) >= 130000


@pytest.mark.faults
@pytest.mark.usefixtures("private_redis", "private_postgresql")  # skipped where there are no programs
def test_killed_test_run_leaves_nothing_behind(tmp_path: Path) -> None:
    """A stand-in for pytest starts both servers and a process that ignores SIGTERM, and is killed."""
    test_run = tmp_path / "test_run.py"
    test_run.write_text(
        """
import subprocess, sys, time
from tests.reaper import Reaper
from tests.servers import own_postgresql, own_redis
reaper = Reaper()
servers = [own_redis(reaper), own_postgresql(reaper)]
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
worker = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True)
reaper.watch(worker.pid)
print(worker.pid, *(word for server in servers for word in (server._process.pid, server.folder)), flush=True)
time.sleep(600)
"""
    )
    root = Path(__file__).resolve().parent.parent
    with subprocess.Popen(
        [sys.executable, test_run],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        worker, redis_pid, redis_folder, postgresql_pid, postgresql_folder = process.stdout.readline().split()
        process.kill()

    def left() -> list[object]:
        pids = [pid for pid in map(int, (worker, redis_pid, postgresql_pid)) if _is_alive(pid)]
        return [*pids, *(folder for folder in (redis_folder, postgresql_folder) if Path(folder).exists())]

    eventually(lambda: not left(), message="processes and folders")


def test_reaper_leaves_forgotten_processes(reaper: Reaper) -> None:
    own = Reaper()
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        own.watch(process.pid)
        own.forget(process.pid)
        own.close()
        assert process.poll() is None
        process.kill()


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
