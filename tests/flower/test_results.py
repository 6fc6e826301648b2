"""Flower with the result backend ``jobhandle``: what its API says of a result is the row's."""

from collections.abc import Iterator
from typing import Any

import pytest

from jobhandle_celery import JobHandle, JobStatus
from tests.apps import lines_of
from tests.flower.conftest import start
from tests.flower.process import Flower
from tests.reaper import Reaper
from tests.support import eventually
from tests.worker.cluster import Cluster, NewCluster

pytestmark = pytest.mark.flower


@pytest.fixture(scope="module")
def cluster(module_cluster: NewCluster) -> Cluster:
    settings = {"result_backend": "jobhandle", "jobhandle_durable": ["worker.*"]}
    cluster = module_cluster(settings=settings)
    start(cluster)
    return cluster


@pytest.fixture(scope="module")
def flower(cluster: Cluster, reaper: Reaper) -> Iterator[Flower]:
    pytest.importorskip("flower")
    flower = Flower(cluster, reaper, app="tests.flower.current_app:app")
    try:
        flower.wait_until_it_listens()
        yield flower
    finally:
        flower.end()


def ended(cluster: Cluster, flower: Flower, task: str, *args: Any) -> JobHandle:
    """A job that has ended, and that Flower knows."""
    handle = cluster.submit(task, *args)
    handle.wait(60)
    eventually(lambda: flower.state(handle) in ("SUCCESS", "FAILURE"))
    return handle


def test_result_of_a_job_is_that_of_its_row(cluster: Cluster, flower: Flower) -> None:
    finished, failed = ended(cluster, flower, "add", 1, 2), ended(cluster, flower, "raise_unpicklable")
    shown = flower.get(f"api/task/result/{finished.get_job().task_id}")
    assert (shown["state"], shown["result"]) == ("SUCCESS", 3)
    shown = flower.get(f"api/task/result/{failed.get_job().task_id}")
    failure = failed.get_job().error
    assert failure is not None
    assert (shown["state"], shown["traceback"]) == ("FAILURE", failure.traceback)
    for handle in (finished, failed):
        page = flower.page(f"task/{handle.get_job().task_id}")
        assert str(flower.state(handle)) in page


def test_task_that_is_called_by_flower_is_a_job(cluster: Cluster, flower: Flower) -> None:
    shown = flower.post("api/task/apply/worker.add", {"args": [3, 4]})
    assert (shown["state"], shown["result"]) == ("SUCCESS", 7)
    (job,) = cluster.jobs.find(limit=1)
    assert (job.task_id, job.result) == (shown["task-id"], 7)
    shown = flower.post("api/task/async-apply/worker.add", {"args": [3, 5], "countdown": 3600})
    assert shown["state"] == "PENDING"
    (job,) = cluster.jobs.find(limit=1)
    assert (job.task_id, job.status) == (shown["task-id"], JobStatus.WAITING)

    flower.press(f"task/revoke/{job.task_id}")  # no worker has its message

    assert cluster.jobs.attach(job.id).job_status() is JobStatus.CANCELLED


def test_abort_button_cancels_a_job(cluster: Cluster, flower: Flower) -> None:
    path = cluster.new_file()
    handle = cluster.submit("attentive", str(path), 120)
    eventually(lambda: "begun" in lines_of(path))
    flower.press(f"task/abort/{handle.get_job().task_id}")
    assert handle.wait(60) is JobStatus.CANCELLED
