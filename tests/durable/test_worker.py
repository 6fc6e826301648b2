"""Durable tasks in a real worker, on Redis and PostgreSQL."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import group
from celery.result import AsyncResult

from jobhandle_celery import JobFailedError, JobResult, JobStatus
from tests.apps import lines_of
from tests.durable.service import make_service
from tests.support import eventually

SETTINGS = {"result_backend": "jobhandle"}


@pytest.fixture
def app(redis_url: str, postgresql_url: str, start_worker: Callable[..., Any]) -> Iterator[Any]:
    start_worker(
        "tests.durable.service:app", database_url=postgresql_url, broker_url=redis_url, settings=SETTINGS
    )
    app: Any = make_service(redis_url, postgresql_url, SETTINGS)
    yield app
    app.jobs.close()


def test_calls_of_durable_tasks_run_as_jobs(app: Any, tmp_path: Path) -> None:
    tasks = app.tasks
    results = [
        tasks["shop.add"].delay(1, 2),
        tasks["shop.add"].apply_async((2, 2)),
        app.send_task("shop.add", (3, 2)),
        tasks["shop.add"].s(4, 2).apply_async(),
        tasks["shop.audited"].delay(5, 2),
    ]
    assert [result.get(timeout=30) for result in results] == [3, 4, 5, 6, 7]
    assert all(isinstance(result, JobResult) for result in results)
    assert [job.id for job in app.jobs.find()] == [result.job_id for result in reversed(results)]

    failed = tasks["shop.fail"].delay("no good")
    with pytest.raises(ValueError, match="no good") as raised:
        failed.get(timeout=30)
    assert isinstance(raised.value, JobFailedError)
    assert "ValueError: no good" in failed.traceback

    retried = tasks["shop.retry_once"].delay(str(tmp_path / "retries"))
    assert retried.get(timeout=30) == 1
    assert lines_of(tmp_path / "retries") == ["0", "1"]

    inner = tasks["shop.submit_other"].delay(6).get(timeout=30)
    assert JobResult(inner, app=app).get(timeout=30) == 7
    assert app.jobs.count_by_status(status="Finished")[JobStatus.FINISHED] == 8
    assert app.jobs.count_by_status()[JobStatus.ERROR] == 1


def test_plain_task_submits_durable_one(app: Any) -> None:
    app.tasks["shop.plain_submit_other"].delay(6)
    (job,) = eventually(lambda: app.jobs.find(status="Finished"))
    assert (job.task, job.result) == ("shop.add", 7)
    assert app.jobs.find() == [job]


def test_request_in_a_body_is_that_of_a_plain_task(app: Any, tmp_path: Path) -> None:
    """In each attempt: ids, retries, delivery_info, headers, limits, and all else that Celery's has."""
    options = {"root_id": "root", "parent_id": "parent", "headers": {"site": "north"}, "time_limit": 60}
    seen = []
    for name in ("shop.write_request", "shop.plain_write_request"):
        path = tmp_path / name
        app.tasks[name].apply_async((str(path),), task_id=name, priority=3, reply_to="its", **options)
        eventually(lambda path=path: len(lines_of(path)) == 2)  # type: ignore[misc]
        requests = [json.loads(line.replace(name, "name")) for line in lines_of(path)]
        for request in requests:
            del request["properties"]["delivery_tag"]
            request["properties"].pop("origin", None)  # a plain retry has it there, too
            own = [request["headers"].pop(key, None) for key in ("jobhandle", "jobhandle_hard_limit")]
            assert ("plain" in name) == (own == [None, None])
        seen.append(requests)
    assert [request["retries"] for request in seen[0]] == [0, 1]
    assert seen[0] == seen[1]


def test_canvas_of_durable_tasks_runs_as_a_tree(app: Any) -> None:
    add, plain = app.tasks["shop.add"], app.tasks["shop.plain_add"]
    canvas: Any = add.s(1, 2) | plain.s(3) | add.s(4)
    assert canvas.delay().get(timeout=30) == 10
    tasks: Any = group(add.s(number, 1) for number in range(3))
    assert tasks.delay().get(timeout=30) == [1, 2, 3]
    ids = app.tasks["shop.submit_canvas"].delay().get(timeout=30)
    assert [app.jobs.attach(job_id).result(timeout=30) for job_id in ids] == [1, 2]


def test_progress_and_result_are_seen_in_any_process(app: Any, tmp_path: Path) -> None:
    result: Any = AsyncResult(app.tasks["shop.report"].delay(str(tmp_path / "end")).id, app=app)
    eventually(lambda: result.state == "PROGRESS")
    assert result.info == {"current": 3, "total": 10, "message": "copying"}
    (tmp_path / "end").touch()
    assert result.get(timeout=30) is True


def test_beat_in_a_worker_submits_jobs(
    redis_url: str, postgresql_url: str, start_worker: Callable[..., Any], tmp_path: Path
) -> None:
    entry = {"task": "shop.add", "schedule": 0.2, "args": [1, 2]}
    start_worker(
        "tests.durable.service:app",
        database_url=postgresql_url,
        broker_url=redis_url,
        settings={"beat_schedule": {"often": entry}, "beat_max_loop_interval": 0.2},
        arguments=["-B", "-s", str(tmp_path / "schedule")],
    )
    app: Any = make_service(redis_url, postgresql_url)
    eventually(lambda: len(app.jobs.find(status="Finished")) >= 3)
    jobs = app.jobs.find(status="Finished")
    assert {(job.task, job.result) for job in jobs} == {("shop.add", 3)}
    app.jobs.close()
