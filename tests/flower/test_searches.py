"""Flower finds a job by its id, for all arguments."""

from datetime import UTC, datetime
from typing import Any

import pytest

from jobhandle_celery import Job, JobHandle
from tests.flower.process import Flower
from tests.support import eventually
from tests.worker.cluster import Cluster

pytestmark = pytest.mark.flower


def found(flower: Flower, handle: JobHandle) -> bool:
    return flower.search(f"kwargs:job_id={handle.job_id}") == {handle.get_job().task_id}


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"given": "x" * 5_000},
        {"given": [{"b": {"c": [1, {"d": 2}]}}] * 50},
        {"given": datetime(2024, 2, 29, tzinfo=UTC)},
        {"given": float("inf")},
        {"job_id": 1},
    ],
    ids=["none", "long", "deep", "no literal", "infinite", "own job_id"],
)
def test_job_is_found_by_its_id(cluster: Cluster, flower: Flower, kwargs: dict[str, object]) -> None:
    handle = cluster.submit("takes_anything", kwargs=kwargs)
    flower.wait_for(handle, "SUCCESS")

    eventually(lambda: found(flower, handle))


@pytest.mark.parametrize("shown", ["***", "{}", "{'given': '***'}"])
def test_job_with_hidden_arguments_is_found_by_its_id(cluster: Cluster, flower: Flower, shown: str) -> None:
    handle = cluster.jobs.handle()
    task: Any = cluster.app.signature("worker.takes_anything", kwargs={"given": "a secret"})
    handle.submit(task.set(kwargsrepr=shown))
    known = flower.wait_for(handle, "SUCCESS")

    eventually(lambda: found(flower, handle))
    assert "a secret" not in str(known["kwargs"])


@pytest.mark.parametrize(
    "given", [{"args": ("hunter2",)}, {"kwargs": {"given": "hunter2"}}], ids=["by position", "by name"]
)
def test_sensitive_argument_is_redacted(cluster: Cluster, flower: Flower, given: dict[str, Any]) -> None:
    handle = cluster.jobs.handle()
    handle.submit(Job(task="worker.takes_anything", sensitive=["given"], **given))
    known = flower.wait_for(handle, "SUCCESS")

    eventually(lambda: found(flower, handle))
    assert "'***'" in known["args"] + known["kwargs"]
    assert "hunter2" not in str(known)
    assert flower.search("hunter2") == set()


def test_job_is_found_by_an_argument(cluster: Cluster, flower: Flower) -> None:
    handle = cluster.submit("takes_anything", kwargs={"given": "needle"})
    flower.wait_for(handle, "SUCCESS")

    assert flower.search("kwargs:given=needle") == {handle.get_job().task_id}
