"""Canvases with `task_always_eager`: members run where the canvas is submitted, in the order of needs."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import chain, chord, group
from celery.result import allow_join_result

from jobhandle_celery import JobFailedError, JobStatus, settler
from tests.apps import make_app


@pytest.fixture
def app(database_url: str) -> Iterator[Any]:
    app: Any = make_app("memory://", database_url, {"task_always_eager": True})

    def total(numbers: list[int]) -> int:
        return sum(numbers)

    def add_in_a_chain(number: int) -> int:
        handle = app.jobs.handle()
        handle.submit(in_steps(app, number))
        with allow_join_result():
            result: int = handle.result(timeout=0)
            return result

    app.task(name="tests.total", shared=False)(total)
    app.task(name="tests.add_in_a_chain", shared=False)(add_in_a_chain)
    yield app
    app.jobs.close()


def in_steps(app: Any, number: int) -> Any:
    add = app.tasks["tests.add"]
    return chain(add.s(number, 1), add.s(1))


def in_a_chain(app: Any) -> Any:
    add, total = app.tasks["tests.add"], app.tasks["tests.total"]
    return chain(add.s(1, 2), group(add.s(1), add.s(2)), total.s(), add.s(5))


def in_a_group(app: Any) -> Any:
    add, total = app.tasks["tests.add"], app.tasks["tests.total"]
    return group(chord([add.s(n, n) for n in range(3)], total.s()), chain(add.s(1, 1), add.s(1)))


@pytest.mark.parametrize(("make", "expected"), [(in_a_chain, 14), (in_a_group, [6, 3])])
def test_eager_canvas_has_its_result_after_the_submit(
    app: Any, make: Callable[[Any], Any], expected: Any
) -> None:
    handle = app.jobs.handle()
    handle.submit(make(app))
    assert handle.result(timeout=0) == expected
    assert [str(event.status) for event in handle.events()] == ["Submitted", "Running", "Finished"]
    assert {record.status for record in handle.members()} == {JobStatus.FINISHED}


def test_eager_failure_cancels_what_needs_it(app: Any) -> None:
    handle = app.jobs.handle()
    handle.submit(chain(app.tasks["tests.fail"].s("no good"), app.tasks["tests.add"].s(1)))
    with pytest.raises(JobFailedError, match="no good"):
        handle.result(timeout=0)
    assert [record.status for record in handle.members()] == [JobStatus.ERROR, JobStatus.CANCELLED]


def test_eager_canvas_is_settled_however_long_it_takes(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No sweeper would settle the rest."""
    monkeypatch.setattr(settler, "SETTLE_TIMEOUT", 0.0)
    handle = app.jobs.handle()
    handle.submit(chain(app.tasks["tests.add"].s(1, 1), *(app.tasks["tests.add"].s(1) for _ in range(3))))
    assert handle.result(timeout=0) == 5


def test_body_that_a_settle_runs_may_wait_for_a_canvas_of_its_own(app: Any) -> None:
    handle = app.jobs.handle()
    handle.submit(chain(app.tasks["tests.add"].s(1, 1), app.tasks["tests.add_in_a_chain"].s()))
    assert handle.result(timeout=0) == 4
