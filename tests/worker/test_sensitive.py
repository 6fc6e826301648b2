"""Sensitive arguments on a real worker: no log, event or `inspect` shows them."""

import json
from typing import Any

import pytest

from jobhandle_celery import JobHandle, JobStatus
from tests.support import eventually
from tests.worker.cluster import Cluster, NewCluster
from tests.workers import WorkerProcess

CANARY = "canary-7f3a"


@pytest.fixture(scope="module")
def cluster(module_cluster: NewCluster) -> Cluster:
    return module_cluster(
        settings={
            "worker_send_task_events": True,
            "task_send_sent_event": True,
            "task_track_started": True,
            "result_extended": True,
        }
    )


@pytest.fixture(scope="module")
def worker(cluster: Cluster) -> WorkerProcess:
    return cluster.start(concurrency=1, arguments=["-E"])


def test_logs_and_events_hide_sensitive_arguments(cluster: Cluster, worker: WorkerProcess) -> None:
    with cluster.events() as events:
        finished = cluster.submit("length_of", CANARY, sensitive=["given"])
        assert finished.wait(30) is JobStatus.FINISHED
        failed = cluster.submit("deaf", str(cluster.folder / CANARY), "no number", sensitive=["path"])
        assert failed.wait(30) is JobStatus.ERROR
        retried = cluster.submit("ask_again_with_other_arguments", CANARY, sensitive=["secret"])
        assert retried.wait(30) is JobStatus.FINISHED
        for handle in (finished, failed, retried):
            task_id = handle.get_job().task_id
            eventually(lambda: {"task-succeeded", "task-failed"} & set(events.of(task_id)))  # noqa: B023
        seen = json.dumps(events.all(), default=str)
    assert retried.result() == len(f"{CANARY}, again")
    assert "'***'" in seen
    assert CANARY not in seen
    assert CANARY not in worker.log


def test_result_backend_gets_no_sensitive_arguments(cluster: Cluster, worker: WorkerProcess) -> None:
    sign, path, secret = cluster.new_file(), cluster.new_file(), str(cluster.folder / CANARY)
    started = cluster.submit("until_there", str(path), str(sign), sensitive=[1])
    eventually(lambda: cluster.state(started.get_job().task_id) == "STARTED")
    assert stored(cluster, started) == ([str(path), "***"], {})
    sign.touch()
    retried = cluster.submit("retry_times", secret, 1, sensitive=[0], kwargs={"countdown": 60})
    eventually(lambda: cluster.state(retried.get_job().task_id) == "RETRY")
    assert stored(cluster, retried) == (["***", 1], {"countdown": 60})
    retried.cancel_job()
    finished = cluster.submit("request_has_the_arguments", sensitive=["given"], kwargs={"given": CANARY})
    assert finished.result(30) is True
    failed = cluster.submit("deaf", secret, "no number", sensitive=[0])
    assert failed.wait(30) is JobStatus.ERROR
    cluster.fence()
    assert stored(cluster, finished) == ([], {"given": "***"})
    assert stored(cluster, failed) == (["***", "no number"], {})


def test_result_backend_gets_other_arguments(cluster: Cluster, worker: WorkerProcess) -> None:
    handle = cluster.submit("add", 1, 2)
    assert handle.result(30) == 3
    cluster.fence()
    assert stored(cluster, handle) == ([1, 2], {})


def stored(cluster: Cluster, handle: JobHandle) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments that the result backend holds."""
    meta = cluster.meta(handle.get_job().task_id)
    assert meta is not None
    return meta["args"], meta["kwargs"]


def test_inspect_hides_sensitive_arguments(cluster: Cluster, worker: WorkerProcess) -> None:
    sign = cluster.new_file()
    path = cluster.new_file()
    handle = cluster.submit("until_there", str(path), str(sign), sensitive=[1])
    eventually(path.exists)
    inspect = cluster.app.control.inspect([worker.nodename], timeout=5)
    [active] = (inspect.active() or {})[worker.nodename]
    assert (active["args"], active["kwargs"]) == ([str(path), "***"], {})
    sign.touch()
    handle.wait(30)


def test_refused_message_is_not_quoted_in_the_log(cluster: Cluster, worker: WorkerProcess) -> None:
    handle, message = cluster.submit_parked("add", CANARY, 2, sensitive=["x"])
    broken = json.loads(message)
    broken["body"] = json.dumps([CANARY])
    broken["properties"]["body_encoding"] = None
    cluster.deliver(json.dumps(broken).encode())
    eventually(lambda: f"job {handle.job_id}: refused its message (no task's arguments" in worker.log)
    del broken["headers"]["task"]
    cluster.deliver(json.dumps(broken).encode())
    eventually(lambda: f"job {handle.job_id}: refused its message (ContentDisallowed" in worker.log)
    broken["headers"] = json.loads(message)["headers"]
    broken["content-type"] = "application/x-unheard-of"
    cluster.deliver(json.dumps(broken).encode())
    eventually(lambda: "refused its message (the type application/x-unheard-of" in worker.log)
    cluster.fence()
    assert handle.job_status() is JobStatus.QUEUED
    assert CANARY not in worker.log


def test_message_for_unknown_task_is_not_logged_or_stored(cluster: Cluster, worker: WorkerProcess) -> None:
    handle = cluster.submit("known_to_few", CANARY, sensitive=[0])
    eventually(
        lambda: (
            f"job {handle.job_id}: worker {worker.nodename} (namespace default) does not know" in worker.log
        )
    )
    eventually(lambda: handle.job_status() is JobStatus.SUBMITTED)
    assert CANARY not in worker.log
    assert cluster.state(handle.get_job().task_id) is None
    handle.cancel_job()
