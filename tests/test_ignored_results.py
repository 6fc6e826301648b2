"""`ignore_result`: a job that gets a result as an argument gets it also from a task that ignores it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import chain, chord, group

from jobhandle_celery import JobStatus
from tests.apps import make_app


def total(numbers: list[int]) -> int:
    return sum(numbers)


def keep(value: Any) -> None:
    kept.append(value)


def anything(*_: Any) -> object:
    return object()


kept: list[Any] = []


@pytest.fixture
def app(database_url: str) -> Iterator[Any]:
    app: Any = make_app("memory://", database_url, {"task_always_eager": True})
    app.task(name="tests.keep", shared=False, ignore_result=True)(keep)
    app.task(name="tests.total", shared=False, ignore_result=True)(total)
    app.task(name="tests.anything", shared=False, ignore_result=True)(anything)
    kept.clear()
    yield app
    app.jobs.close()


def add(app: Any, *numbers: int) -> Any:
    return app.tasks["tests.add"].s(*numbers).set(ignore_result=True)


def last(app: Any) -> Any:
    return app.tasks["tests.keep"].s()


def sum_of(app: Any) -> Any:
    return app.tasks["tests.total"].s()


def linked(app: Any) -> Any:
    first = add(app, 1, 1)
    first.link(last(app))
    return first


CANVASES: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "chain": (lambda app: chain(add(app, 1, 1), add(app, 1), last(app)), 3),
    "chord": (lambda app: chord([add(app, 1, 1), add(app, 2, 2)], last(app)), [2, 4]),
    "chord's body": (lambda app: chain(chord([add(app, 1, 1)], sum_of(app)), last(app)), 2),
    "group in a chain": (
        lambda app: chain(add(app, 1, 1), group(add(app, 1), add(app, 2)), sum_of(app), last(app)),
        7,
    ),
    "nested": (
        lambda app: chord([chain(add(app, 1, 1), add(app, 1)), group(add(app, 2, 2))], last(app)),
        [3, 4],
    ),
    "callback": (linked, 2),
}


@pytest.mark.parametrize("canvas", CANVASES)
def test_next_task_gets_an_ignored_result(app: Any, canvas: str) -> None:
    make, expected = CANVASES[canvas]
    app.jobs.submit(make(app))
    assert kept == [expected]


def test_canvas_passes_results_with_task_ignore_result(app: Any) -> None:
    app.conf.update(task_ignore_result=True, jobhandle_durable=["tests.*"])
    plus = app.tasks["tests.add"]
    plus.ignore_result = True
    plus.apply_async((1, 1), link=last(app))
    chain(plus.s(1, 2), last(app)).delay()
    app.jobs.submit(chain(plus.s(2, 2), last(app)))
    assert kept == [2, 3, 4]


def test_ignored_result_that_is_no_json_fails_what_needs_it(app: Any) -> None:
    """The last task of a chain may return anything."""
    task = app.tasks["tests.anything"]
    handle = app.jobs.handle()
    handle.submit(chain(task.s(), last(app)))
    assert handle.wait(0) is JobStatus.ERROR
    needed, needing = handle.members()
    assert needed.status is JobStatus.FINISHED
    assert needing.error.message.startswith(
        f"the result of job {needed.id}, an argument of this job, was not"
    )
    handle.submit(chain(add(app, 1, 1), task.s()))
    assert handle.result(timeout=0) is None
