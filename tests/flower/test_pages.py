"""Flower's pages in a real browser; needs Chromium and Playwright."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from jobhandle_celery import JobHandle, JobStatus
from tests.flower import browser
from tests.flower.process import Flower
from tests.support import eventually, missing
from tests.worker.cluster import Cluster

pytestmark = pytest.mark.flower

WORKER = "stays@localhost"


@pytest.fixture(scope="module")
def page(flower: Flower) -> Iterator[Any]:
    if find_spec("playwright") is None:
        missing("no Playwright: pip install playwright")
    if browser.program() is None:
        missing(f"none of {', '.join(browser.PROGRAMS)} is on the PATH")
    with browser.opened(flower.login) as page:
        yield page


def running(cluster: Cluster, flower: Flower) -> JobHandle:
    handle = cluster.submit("report_progress", str(cluster.new_file()))
    flower.wait_for(handle, "PROGRESS")
    return handle


def open_task(page: Any, flower: Flower, handle: JobHandle) -> None:
    page.goto(f"{flower.url}/task/{handle.get_job().task_id}")


def shown(page: Any, name: str) -> str:
    """Return the value beside a name on the page of a task."""
    return str(page.locator(".detail-row", has_text=name).locator("dd").first.inner_text()).strip()


def test_search_box_finds_a_job(cluster: Cluster, flower: Flower, page: Any) -> None:
    handles = [cluster.submit("add", number, 1) for number in range(3)]
    for handle in handles:
        flower.wait_for(handle, "SUCCESS")

    browser.search(page, flower.url, f"kwargs:job_id={handles[1].job_id}")

    task_id = handles[1].get_job().task_id
    eventually(lambda: [row.get("uuid") for row in browser.rows(page)] == [task_id])
    (row,) = browser.rows(page)
    assert (row["state"], row["result"]) == ("SUCCESS", "2")


def test_terminate_button_is_shown_for_a_job_with_progress(
    cluster: Cluster, flower: Flower, page: Any
) -> None:
    handle = running(cluster, flower)
    open_task(page, flower, handle)
    assert (shown(page, "Status"), shown(page, "Result")) == ("STARTED", "25 %: reading")

    assert "Revoked" in browser.press(page, "#task-terminate")

    assert handle.wait(30) is JobStatus.CANCELLED
    assert "terminated" in handle.job_message()
    flower.wait_for(handle, "REVOKED")
    open_task(page, flower, handle)
    assert shown(page, "Status") == "REVOKED"


def test_revoke_button_cancels_a_job_before_its_start(cluster: Cluster, flower: Flower, page: Any) -> None:
    body = running(cluster, flower)
    handle = cluster.submit("add", 1, 1)
    flower.wait_for(handle, "RECEIVED")
    open_task(page, flower, handle)

    assert "Revoked" in browser.press(page, "#task-revoke")
    body.cancel_job()

    assert handle.wait(30) is JobStatus.CANCELLED
    assert handle.get_job().started is None


def test_time_limit_form_ends_a_job(cluster: Cluster, flower: Flower, page: Any) -> None:
    flower.refresh(WORKER)
    page.goto(f"{flower.url}/worker/{WORKER}")
    page.locator("#worker-tab-limits").click()
    page.get_by_label("Timeout for worker.deaf", exact=True).fill("1")
    message = browser.press(page, "[id='task-timeout-hard-worker.deaf']")
    assert "time limits set successfully" in message
    try:
        handle = cluster.submit("deaf", str(cluster.new_file()), 120)

        assert handle.wait(60) is JobStatus.ERROR
        assert handle.job_message() == "the time limit of 1 s was exceeded"
        eventually(lambda: flower.state(handle) == "FAILURE")
    finally:
        flower.press("task/timeout/worker.deaf", workername=WORKER)
