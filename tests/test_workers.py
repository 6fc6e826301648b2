"""The worker processes of the tests start, obey, and are gone afterwards; without the library."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from celery import Celery

from tests.fork_server import _pair
from tests.support import eventually
from tests.workers import WorkerProcess

StartWorker = Callable[..., WorkerProcess]

PLAIN_APP = """
import os, time
from celery import Celery
from celery.signals import worker_process_init

app = Celery("plain", broker=os.environ["JOBHANDLE_TEST_BROKER_URL"])

@worker_process_init.connect
def print_pid(**kwargs):
    print(f"child {os.getpid()} is initialised")

@app.task(name="plain.touch")
def touch(path, seconds=0):
    open(path, "a").close()
    time.sleep(seconds)
"""


@pytest.fixture
def plain_worker(start_worker: StartWorker, broker_url: str, tmp_path: Path) -> StartWorker:
    (tmp_path / "plain_app.py").write_text(PLAIN_APP)

    def start(**options: object) -> WorkerProcess:
        environment = {"PYTHONPATH": str(tmp_path)}
        return start_worker("plain_app:app", broker_url=broker_url, environment=environment, **options)

    return start


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_worker_of_each_pool_runs_a_task_and_ends_when_asked(
    plain_worker: StartWorker, broker_url: str, tmp_path: Path, pool: str
) -> None:
    worker = plain_worker(pool=pool, queues=["quick"])
    with Celery(broker=broker_url, set_as_current=False) as app:
        app.send_task("plain.touch", [str(tmp_path / "done")], queue="quick")
    eventually((tmp_path / "done").exists, message=worker.log)
    eventually(lambda: "succeeded in" in worker.log)

    worker.terminate()

    if pool == "prefork":
        # Celery's prefork worker sometimes does not end if SIGTERM comes within its first second (fault 3).
        with contextlib.suppress(AssertionError):
            worker.wait(10)
        worker.kill()
    assert worker.wait() == 0 or pool == "prefork"
    assert f"{worker.nodename} ready." in worker.log


def test_killed_children_are_replaced(plain_worker: StartWorker) -> None:
    worker = plain_worker(concurrency=2)
    before = set(worker.children())
    assert len(before) == 2

    worker.kill_children()

    eventually(lambda: len(set(worker.children()) - before) == 2, message="two new children")


def test_stopped_worker_does_nothing_until_continued(
    plain_worker: StartWorker, broker_url: str, tmp_path: Path
) -> None:
    worker = plain_worker()
    worker.stop_process()
    eventually(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED)
    with Celery(broker=broker_url, set_as_current=False) as app:
        app.send_task("plain.touch", [str(tmp_path / "done")])
    assert not (tmp_path / "done").exists()

    worker.continue_process()

    eventually((tmp_path / "done").exists)


def test_killed_worker_says_which_signal(plain_worker: StartWorker) -> None:
    worker = plain_worker()
    children = worker.children()
    # The children ask the kernel to end with their parent at their start, which may be after "ready". Before
    # that, each holds the pipes of the others open, so that none of them reads an end.
    eventually(lambda: all(f"child {pid} is initialised" in worker.log for pid in children))

    worker.kill()

    assert worker.wait() == -signal.SIGKILL
    eventually(
        lambda: not any(psutil.pid_exists(pid) for pid in children), message=f"children {children} live on"
    )


def test_worker_that_cannot_start_says_why(start_worker: StartWorker) -> None:
    with pytest.raises(AssertionError, match="no_such_module"):
        start_worker("no_such_module:app")


def test_two_workers_on_one_redis_have_names_of_their_own(plain_worker: StartWorker) -> None:
    first, second = plain_worker(pool="solo"), plain_worker(pool="solo")

    assert first.nodename != second.nodename
    assert os.getpgid(first.pid) != os.getpgid(second.pid)


def test_fork_server_sockets_block_despite_default_timeout() -> None:
    socket.setdefaulttimeout(5)  # as kombu does while it closes a connection
    try:
        mine, theirs = _pair()
    finally:
        socket.setdefaulttimeout(None)
    with mine, theirs:
        assert os.get_blocking(mine.fileno())
        assert os.get_blocking(theirs.fileno())
