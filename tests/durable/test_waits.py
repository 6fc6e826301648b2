"""Waits for results: `get()`, `join_native()` and their options poll the rows."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError, TimeoutError
from celery.result import AsyncResult, GroupResult, ResultSet, denied_join_result

from jobhandle_celery import (
    ApiUsageError,
    JobResult,
)
from jobhandle_celery.durable.results import JobGroupResult
from tests.durable.results import result_in
from tests.durable.service import make_service
from tests.job_factory import JobFactory


def test_get_waits_for_the_end(sqlite_factory: JobFactory, app: Any) -> None:
    result = result_in("Running", sqlite_factory, app)
    asked: list[str] = []

    def end() -> None:
        asked.append(result.state)
        sqlite_factory.jobs.attach(result.job_id).set_status("Finished")

    assert result.get(timeout=60, interval=0.01, on_interval=end) is None
    assert asked == ["STARTED"]  # Celery calls it once
    called: list[Any] = []
    result.get(callback=lambda *given: called.append(given))
    assert called == [(result.id, None)]


def test_get_ends_with_its_timeout(sqlite_factory: JobFactory, app: Any) -> None:
    for result in (result_in("Running", sqlite_factory, app), JobResult("unknown", app=app, job_id=12345)):
        with pytest.raises(TimeoutError):
            result.get(timeout=0.05)
        with pytest.raises(TimeoutError):
            result.get(timeout=0)


def test_get_waits_for_a_row_that_is_not_committed(sqlite_url: str, app: Any) -> None:
    result = JobResult("unknown", app=app, job_id=1)
    assert (result.state, result.children) == ("PENDING", None)
    assert result.get(timeout=60, interval=0.01, on_interval=lambda: submit_first(app)) is None


def submit_first(app: Any) -> None:
    if not app.jobs.find():
        handle = app.jobs.attach(app.tasks["shop.add"].delay(1, 2).job_id)
        handle.set_status("Running")
        handle.set_status("Finished")


@pytest.mark.parametrize("interval", [0, 0.0, -1, None, 1e-9])
def test_any_interval_is_allowed(sqlite_factory: JobFactory, app: Any, interval: float | None) -> None:
    """Celery allows 0: it polls as often as it can."""

    def finish(results: list[Any]) -> None:
        for result in results:
            if not app.jobs.attach(result.job_id).job_status().final:
                app.jobs.attach(result.job_id).set_status("Finished")

    for way in ("get", "join", "join_native"):
        results = [result_in("Running", sqlite_factory, app) for _ in range(1 if way == "get" else 2)]
        waiting = results[0] if way == "get" else GroupResult("the id", results, app=app)
        getattr(waiting, way)(timeout=30, interval=interval, on_interval=partial(finish, results))
        assert waiting.successful()


def test_messages_of_the_states_that_a_wait_sees(sqlite_factory: JobFactory, app: Any) -> None:
    waiting, running = result_in("Submitted", sqlite_factory, app), result_in("Running", sqlite_factory, app)
    group = JobGroupResult("the id", [running, waiting], app=app, job_id=1)
    seen: list[tuple[str, str, Any]] = []
    steps: Iterator[Callable[[], Any]] = iter(
        [
            lambda: app.jobs.attach(running.job_id).set_progress(1, 2),
            lambda: None,
            lambda: app.jobs.attach(running.job_id).set_progress(2, 2),
            lambda: app.jobs.attach(running.job_id).set_status("Error"),
            lambda: app.jobs.attach(waiting.job_id).cancel_job(),
        ]
    )

    def note(meta: dict[str, Any]) -> None:
        progress = meta["result"]["current"] if meta["status"] == "PROGRESS" else None
        seen.append((meta["task_id"], meta["status"], progress))

    of_running = [
        (running.id, "STARTED", None),
        (running.id, "PROGRESS", 1),
        (running.id, "PROGRESS", 2),
        (running.id, "FAILURE", None),
    ]
    waits: dict[str, Any] = {"timeout": 30, "interval": 0, "propagate": False}
    values = group.get(**waits, on_message=note, on_interval=lambda: next(steps)())  # noqa: PLW0108
    assert [type(value) for value in values][1] is TaskRevokedError
    assert seen == [*of_running, (waiting.id, "REVOKED", None)]
    seen.clear()
    again = result_in("Running", sqlite_factory, app)
    app.jobs.attach(again.job_id).set_progress(1, 2)
    finish = lambda: app.jobs.attach(again.job_id).set_status("Finished")  # noqa: E731
    again.get(**waits, on_message=note, on_interval=finish)
    assert seen == [(again.id, "PROGRESS", 1), (again.id, "SUCCESS", None)]


def test_native_joins_read_the_rows(sqlite_url: str, sqlite_factory: JobFactory) -> None:
    """Whatever the result backend of the app is: nothing listens there."""
    app: Any = make_service("memory://", sqlite_url, {"result_backend": "redis://127.0.0.1:1/0"})
    results = [result_in(status, sqlite_factory, app) for status in ("Finished", "Error", "Finished")]
    group: Any = JobGroupResult("the id", results, app=app, job_id=1)
    native: Any
    for native in (group, ResultSet(results, app=app), ResultSet(results)):
        found = dict(native.iter_native(timeout=60))
        assert [found[result.id]["status"] for result in results] == ["SUCCESS", "FAILURE", "SUCCESS"]
        first, error, third = native.join_native(timeout=60, propagate=False)
        assert (first, type(error).__name__, third) == (5, "ValueError", 5)
        with pytest.raises(ValueError, match="no good"):
            native.join_native(timeout=60)
    running = result_in("Running", sqlite_factory, app)
    with pytest.raises(TimeoutError):
        ResultSet([*results, running], app=app).join_native(timeout=0, propagate=False)
    app.jobs.close()


def test_native_join_of_a_mixed_set_is_refused(sqlite_factory: JobFactory, app: Any) -> None:
    results = [result_in("Finished", sqlite_factory, app)]
    group: Any = JobGroupResult("the id", results, app=app, job_id=1)
    plain: Any = AsyncResult("plain", app=app)
    mixed: Any
    for mixed in ([*results, plain], [*results, group], [group]):
        with pytest.raises(ApiUsageError, match=r"use join\(\)"):
            ResultSet(mixed, app=app).join_native(timeout=60)


def test_backend_finds_many_results_by_their_ids(sqlite_factory: JobFactory, app: Any) -> None:
    finished, running = result_in("Finished", sqlite_factory, app), result_in("Running", sqlite_factory, app)
    found = app.backend.get_many([finished.id, running.id], max_iterations=1)
    assert [(task_id, meta["result"]) for task_id, meta in found] == [(finished.id, 5)]
    with pytest.raises(TimeoutError):
        dict(app.backend.get_many([finished.id, running.id], timeout=0))
    with pytest.raises(NotImplementedError, match="a plain task has none"):
        dict(app.backend.get_many(["plain"]))


def test_get_refuses_what_it_cannot_do(sqlite_factory: JobFactory, app: Any) -> None:
    result = result_in("Running", sqlite_factory, app)
    with denied_join_result(), pytest.raises(RuntimeError, match="Never call result"):
        result.get()
