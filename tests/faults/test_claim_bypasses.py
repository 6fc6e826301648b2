"""Workers that would run a job without claiming it cannot read its message (faults 4, 5)."""

import base64
import json
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from jobhandle_celery import Job, JobHandle, JobStatus
from jobhandle_celery.broker.headers import CONTENT_TYPE
from tests.apps import lines_of
from tests.faults.misconfigured_apps import KINDS, WRONG
from tests.support import eventually
from tests.worker.cluster import DEFAULT_QUEUE, Cluster, NewCluster

pytestmark = [pytest.mark.faults, pytest.mark.slow]

SETTINGS = {"jobhandle_republish_after": 0.3, "jobhandle_publish_grace": 0.5, "jobhandle_lease": 6}
APPS = "tests.faults.misconfigured_apps"


def submit(cluster: Cluster, path: Path, kind: str, text: str) -> JobHandle:
    handle = cluster.jobs.handle()
    handle.submit(Job(task=f"wrong.{kind}", args=[str(path), text]))
    return handle


def were_sent(cluster: Cluster, handles: list[JobHandle], times: int) -> bool:
    """Sweep; return whether each of these jobs has been published `times` times."""
    cluster.jobs.sweep()
    sights = cluster.jobs._runtime.store.diagnostics.details_of([handle.job_id for handle in handles])
    return all(sight.internals.publish_count >= times for sight in sights)


def last_event(cluster: Cluster, handle: JobHandle) -> str:
    return cluster.jobs.events(handle.job_id)[-1].message


def as_plain_task(message: bytes, task_id: str, args: list[Any]) -> bytes:
    """Return a plain task's message, made from a job's."""
    plain = json.loads(message)
    del plain["headers"]["jobhandle"]
    plain["headers"]["id"] = task_id
    plain["content-type"] = "application/json"
    plain["body"] = base64.b64encode(json.dumps([args, {}, {}]).encode()).decode()
    return json.dumps(plain).encode()


def test_no_worker_without_jobs_runs_a_job(new_cluster: NewCluster) -> None:
    """Workers without `Jobs`, however they take messages, run no job, however often it is sent (fault 4)."""
    cluster = new_cluster(settings=SETTINGS)
    path = cluster.new_file()
    wrong = [cluster.start(f"{APPS}:{app}", concurrency=1, ready=False) for app in WRONG]
    for worker in wrong:
        worker.wait_until_ready()
    kept = [submit(cluster, path, kind, "kept") for kind in KINDS]
    cancelled = [submit(cluster, path, kind, "cancelled") for kind in KINDS]
    for handle in cancelled:
        assert handle.cancel_job() is JobStatus.CANCELLED
    eventually(partial(were_sent, cluster, kept, 2))
    eventually(lambda: not cluster.redis.llen(DEFAULT_QUEUE))
    assert lines_of(path) == []

    # Otherwise this would prove nothing: a plain task's message runs there.
    for kind in KINDS:
        _, message = cluster.submit_parked(f"wrong.{kind}", str(path), "parked")
        for number in range(4):
            task_id = f"{kind}-{number}"
            cluster.deliver(as_plain_task(message, task_id, [str(path), "plain"]), id=task_id)
    eventually(lambda: {f"{kind} plain unclaimed" for kind in KINDS} <= set(lines_of(path)))

    wrong[1].end()
    rights = [cluster.start(f"{APPS}:right", concurrency=1, ready=False) for _ in range(2)]
    rights[0].wait_until_ready()
    for handle in kept:
        assert handle.wait(90) is JobStatus.FINISHED
    expected = {f"{kind} kept {handle.job_id}" for kind, handle in zip(KINDS, kept, strict=True)}
    of_jobs = [line for line in lines_of(path) if " plain " not in line and " parked " not in line]
    assert (len(of_jobs), set(of_jobs)) == (len(kept), expected)
    assert wrong[0].is_running()
    assert all("Refusing to deserialize" in worker.log for worker in wrong)


def test_worker_without_jobs_on_rabbitmq_rejects_its_messages(
    new_cluster: NewCluster, rabbitmq_url: str
) -> None:
    """On RabbitMQ too the message is rejected, not requeued, and the sweeper sends another (fault 4)."""
    cluster = new_cluster(settings=SETTINGS, broker_url=rabbitmq_url)
    path = cluster.new_file()
    wrong = cluster.start(f"{APPS}:plain", concurrency=1)
    handle = submit(cluster, path, "ordinary", "kept")
    eventually(partial(were_sent, cluster, [handle], 2))
    eventually(lambda: "Refusing to deserialize" in wrong.log)
    assert lines_of(path) == []
    wrong.end()

    cluster.start(f"{APPS}:right", concurrency=1)

    assert handle.wait(60) is JobStatus.FINISHED
    assert lines_of(path) == [f"ordinary kept {handle.job_id}"]


def test_older_version_runs_jobs_in_its_own_message_form(new_cluster: NewCluster) -> None:
    """A worker of the version before drops what this one sends, and runs what its sweep sends (fault 4)."""
    cluster = new_cluster(settings=SETTINGS)
    path = cluster.new_file()
    older = cluster.start(f"{APPS}:right", concurrency=1, environment={"WRONG_APPS_OLDER": "1"})
    handle = submit(cluster, path, "ordinary", "kept")

    assert handle.wait(60) is JobStatus.FINISHED

    assert lines_of(path) == [f"ordinary kept {handle.job_id}"]
    assert f"the type {CONTENT_TYPE}" in older.log


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_tasks_that_bypass_the_claim_run_no_job(new_cluster: NewCluster, pool: str) -> None:
    """A worker with `Jobs` drops the message of a task with its own strategy or request (fault 5).

    A request that runs the body once the pool has accepted it fails there, and the pool runs the job.
    """
    cluster = new_cluster(settings=SETTINGS)
    path = cluster.new_file()
    worker = cluster.start(f"{APPS}:half_right", concurrency=1, pool=pool)
    kinds = ["batches", "strategy", "request", "revoked"]
    handles = [submit(cluster, path, kind, "kept") for kind in kinds]
    eventually(partial(were_sent, cluster, handles, 2))
    eventually(lambda: all("of its own" in last_event(cluster, handle) for handle in handles))
    for kind, handle in zip(kinds, handles, strict=True):
        assert f"job {handle.job_id}: refused its message (the task wrong.{kind} has a" in worker.log
        assert handle.cancel_job() is JobStatus.CANCELLED
    assert lines_of(path) == []
    for kind in ("accepted", "ordinary"):
        handle = submit(cluster, path, kind, "kept")
        assert handle.wait(30) is JobStatus.FINISHED
        assert lines_of(path)[-1] == f"{kind} kept {handle.job_id}"
    assert len(lines_of(path)) == 2


PROTOCOLS = ["1", "1 with our header", "1 of our type", "2 without our header"]


def test_messages_of_another_protocol_run_no_job(new_cluster: NewCluster) -> None:
    """What has a job's content type or header and is not of our form is dropped (fault 4)."""
    cluster = new_cluster(settings={"jobhandle_republish_after": 3600})
    cluster.start(concurrency=1)
    path = cluster.new_file()
    handle, message = cluster.submit_parked("append", str(path), "body")
    for protocol in PROTOCOLS:
        cluster.redis.lpush(DEFAULT_QUEUE, forged(message, protocol, [str(path), "forged"]))
    cluster.fence()
    assert lines_of(path) == []
    assert handle.get_job().attempt == 0

    cluster.deliver(message)

    assert handle.wait(20) is JobStatus.FINISHED
    assert lines_of(path) == ["body"]


def forged(message: bytes, protocol: str, args: list[Any]) -> str:
    """Return a message for the same job in a form that this library does not send."""
    copy = json.loads(message)
    header, task_id = copy["headers"]["jobhandle"], copy["headers"]["id"]
    if protocol.startswith("1"):
        body = {"task": "worker.append", "id": task_id, "args": args, "kwargs": {}, "jobhandle": header}
        copy["body"] = base64.b64encode(json.dumps(body).encode()).decode()
        copy["headers"] = {"jobhandle": header} if "header" in protocol else {}
        if "our type" not in protocol:
            copy["content-type"] = "application/json"
    else:
        del copy["headers"]["jobhandle"]
    copy["properties"]["delivery_tag"] = str(uuid.uuid4())
    copy["properties"]["delivery_info"]["routing_key"] = DEFAULT_QUEUE
    return json.dumps(copy)
