"""Members of trees in real workers: their arguments, their requests, and what Celery stores and sends."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from jobhandle_celery import Job, JobHandle, JobStatus
from jobhandle_celery.runtime import runtime_of
from jobhandle_celery.schema import job
from jobhandle_celery.serialization import LIMIT
from tests.apps import lines_of
from tests.tree_rows import Node, group, insert_needs, leaf
from tests.worker.cluster import Cluster, NewCluster


@pytest.fixture(scope="module", params=["prefork", "threads", "solo", "gevent"])
def cluster(request: pytest.FixtureRequest, module_cluster: NewCluster) -> Iterator[Cluster]:
    cluster = module_cluster()
    cluster.start(pool=request.param, concurrency=2, arguments=["-E"])
    yield cluster
    cluster.close()  # the next one has the same broker


def submit(cluster: Cluster, asked: Job, needed: Node, **options: Any) -> JobHandle:
    """Submit a job whose first argument is the result of a tree; `options` are of its messages."""
    handle = cluster.jobs.handle()
    handle.submit(Job(**{**vars(asked), "status": JobStatus.WAITING}))
    with runtime_of(cluster.app).store.database.transaction() as db:
        row = db.connection.execute(job.select().where(job.c.id == handle.job_id)).one()
        routing = json.dumps({**json.loads(row.routing), **options})
        insert_needs(db.connection, handle.job_id, needed, routing=routing)
    handle.release_job()
    return handle


def test_body_and_its_retry_have_results_once(cluster: Cluster) -> None:
    handle = submit(cluster, Job(task="worker.taking", args=["own"]), group(leaf(1), leaf(2)))
    assert handle.result(timeout=20)["args"] == [[1, 2], "own"]


def test_request_names_the_canvas_and_celerys_chord_does_nothing(cluster: Cluster) -> None:
    """Tools read these fields; only a `chord`, a `chain` or a callback makes Celery start another task."""
    place = {"group_id": "a group", "group_index": 3, "root_id": "a root", "parent_id": "a parent"}
    handle = submit(cluster, Job(task="worker.taking"), leaf(1), **place)
    assert handle.result(timeout=20) == {
        "args": [1],
        "group": "a group",
        "root_id": "a root",
        "parent_id": "a parent",
        "chord": None,
        "chain": None,
    }
    assert cluster.state(handle.get_job().task_id) == "SUCCESS"
    assert not cluster.redis.keys("*a group*")


def test_member_whose_arguments_are_too_large_fails_in_celerys_terms(cluster: Cluster) -> None:
    with cluster.events() as events:
        asked = Job(task="worker.length_of")
        handle = submit(cluster, asked, leaf("x" * LIMIT))
        assert handle.wait(20) is JobStatus.ERROR
        task_id = handle.get_job().task_id
        cluster.submit("add", 1, 1).result(timeout=20)
        assert [kind for kind in events.of(task_id) if kind != "task-sent"] == [
            "task-received",
            "task-started",
            "task-failed",
        ]
    assert cluster.state(task_id) == "FAILURE"
    assert "bytes" in handle.job_message()
    assert handle.get_job().attempt == 1


@pytest.mark.faults
def test_lost_worker_with_attempts_left_reads_results_again(new_cluster: NewCluster) -> None:
    cluster = new_cluster()
    cluster.start()
    path = cluster.new_file()
    handle = submit(
        cluster, Job(task="worker.killed_once_with", args=[str(path)], max_attempts=2), leaf("result")
    )
    assert handle.result(timeout=30) == "result"
    assert lines_of(path) == ["begun"]
    assert handle.get_job().attempt == 2
