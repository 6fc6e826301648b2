"""Flower's buttons change the row of a job."""

import re
from collections.abc import Iterator

import pytest

from jobhandle_celery import JobHandle, JobStatus
from tests.apps import lines_of
from tests.flower.process import Flower
from tests.support import eventually
from tests.worker.site import Site

pytestmark = pytest.mark.flower

WORKER = "stays@localhost"
TASK = "worker.deaf"


def running(site: Site, seconds: float = 120) -> JobHandle:
    path = site.new_file()
    handle = site.submit(TASK, str(path), seconds)
    eventually(lambda: lines_of(path) == ["begun"], 60, "the job was not started")
    return handle


def test_terminate_cancels_a_running_job(site: Site, flower: Flower) -> None:
    handle = running(site)
    flower.wait_for(handle, "STARTED")

    flower.press(f"task/revoke/{handle.get_job().task_id}", terminate="true")

    assert handle.wait(30) is JobStatus.CANCELLED
    assert "terminated" in handle.job_message()
    flower.wait_for(handle, "REVOKED")


def test_revoke_cancels_a_job_before_its_start(site: Site, flower: Flower) -> None:
    body = running(site)
    handle = site.submit("add", 1, 1)
    flower.wait_for(handle, "RECEIVED")

    flower.press(f"task/revoke/{handle.get_job().task_id}")
    body.cancel_job(terminate=True)

    assert handle.wait(30) is JobStatus.CANCELLED
    assert handle.get_job().started is None
    flower.wait_for(handle, "REVOKED")


@pytest.fixture
def limited(flower: Flower) -> Iterator[Flower]:
    """Flower; the time limits of the task are removed afterwards."""
    flower.refresh(WORKER)
    yield flower
    flower.press(f"task/timeout/{TASK}", workername=WORKER)


@pytest.mark.parametrize("limit", ["soft", "hard"])
def test_time_limit_ends_a_job(site: Site, limited: Flower, limit: str) -> None:
    message = limited.press(f"task/timeout/{TASK}", workername=WORKER, **{limit: 1})
    assert message == "time limits set successfully"

    handle = running(site)

    assert handle.wait(60) is JobStatus.ERROR
    assert re.search("time limit .*was exceeded", handle.job_message())
    limited.wait_for(handle, "FAILURE")
