"""Jobs of one call that differ in their arguments alone are prepared as each would be by itself."""

from dataclasses import replace
from typing import Any

import pytest
from celery import Celery, Task, signals

from jobhandle_celery import Job, ValidationError
from jobhandle_celery.broker.routing import Routing
from jobhandle_celery.preparer import Preparer
from jobhandle_celery.store import NewJob


class Shadowed(Task):  # type: ignore[type-arg]
    def shadow_name(self, args: Any, kwargs: Any, options: Any) -> Any:
        return f"of {args[0]}"


class Prioritized(Task):  # type: ignore[type-arg]
    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:  # type: ignore[override]
        return super().apply_async(args, kwargs, **options | {"priority": args[0]})


def route_by_arguments(name: str, args: Any, kwargs: Any, options: Any, **_: Any) -> Any:
    return {"queue": f"queue-{args[0]}"} if name == "routed" else None


@pytest.fixture
def app() -> Celery:
    app = Celery("alike", broker="memory://", set_as_current=False)
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "shadowed": {"base": Shadowed},
        "prioritized": {"base": Prioritized},
        "secret": {"sensitive": ["number"]},
        "routed": {},
    }
    for name, given in options.items():
        task: Any = app.task(name=name, shared=False, **given)
        task(body)
    return app


def body(number: int, further: Any = None) -> None: ...


@pytest.fixture
def preparer(app: Celery) -> Preparer:
    return Preparer(Routing(app))


def prepared(preparer: Preparer, *given: object) -> list[NewJob]:
    return [replace(row, task_id="") for row in preparer.prepare(given, "ann", "lab").jobs]


def singly(preparer: Preparer, *given: object) -> list[NewJob]:
    return [row for job in given for row in prepared(preparer, job)]


WISHES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "options of its route": {"queue": "fast", "priority": 3, "ignore_result": True},
    "a countdown": {"countdown": 5},
    "limits": {"time_limit": 60, "expires": 9.5},
    "headers": {"headers": {"trace": "a"}},
    "own options": {"unique_key": "a", "max_attempts": 3},
    "sensitive arguments": {"sensitive": ["number"]},
    "a shadow": {"shadow": "another name"},
    "stamps": {"stamped_headers": ["batch"], "batch": "monday"},
}


@pytest.mark.parametrize("wishes", WISHES)
@pytest.mark.parametrize("task", ["plain", "shadowed", "prioritized", "secret", "unknown"])
def test_signatures_are_prepared_as_each_by_itself(
    wishes: str, task: str, app: Celery, preparer: Preparer
) -> None:
    given = [app.signature(task, args=(number,)).set(**WISHES[wishes]) for number in (1, 2, 3)]
    assert prepared(preparer, *given) == singly(preparer, *given)


JOBS = {
    "plain": Job(task="plain", args=[1], message="from the importer", meta="a"),
    "a mapping": Job(task="plain", args=[1], meta={"a": [1]}),
    "held": Job(task="plain", args=[1], status="Waiting"),  # type: ignore[arg-type]  # a word is accepted
    "headers": Job(task="plain", args=[1], headers={"trace": "a"}),
    "sensitive": Job(task="plain", args=[1], sensitive=["number"]),
    "timed": Job(task="plain", args=[1], scheduled_for=5, expires=60),
}


@pytest.mark.parametrize("case", JOBS)
def test_jobs_are_prepared_as_each_by_itself(case: str, preparer: Preparer) -> None:
    """Also those that differ in more than their arguments."""
    job = JOBS[case]
    given = [
        *(replace(job, args=[number]) for number in (1, 2)),
        replace(job, args=(3,), kwargs={"further": {"é": None}}),
        *(replace(job, priority=priority) for priority in (1, 2, None)),
        *(replace(job, **changed) for changed in ({"queue": "fast"}, {"max_attempts": 2}, {"meta": 1})),
        *(replace(job, headers={"trace": value}) for value in (1, True)),
        *(replace(job, meta=value) for value in (1, True, 1.0)),
        *(replace(job, sensitive=[position]) for position in (0, 1)),
    ]
    assert prepared(preparer, *given) == singly(preparer, *given)


def test_only_the_first_of_alike_jobs_is_routed(preparer: Preparer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each kind, in any order."""
    routed: list[object] = []
    route = Routing.route

    def counted(self: Routing, job: Any, *rest: Any) -> Any:
        routed.append(job)
        return route(self, job, *rest)

    monkeypatch.setattr(Routing, "route", counted)
    plain, urgent = ([Job(task="plain", args=[n], priority=p) for n in (1, 2, 3)] for p in (None, 9))
    prepared(preparer, *(job for both in zip(plain, urgent, strict=True) for job in both))
    assert len(routed) == 2


def test_route_that_is_a_function_is_asked_for_each_job(app: Celery, preparer: Preparer) -> None:
    app.conf.task_routes = [route_by_arguments]
    rows = prepared(preparer, *(Job(task="routed", args=[number]) for number in (1, 2)))
    assert [row.queue for row in rows] == ["queue-1", "queue-2"]


def test_handler_of_a_publish_signal_is_called_for_each_job(preparer: Preparer) -> None:
    def count(headers: Any, **_: Any) -> None:
        headers["number"] = next(numbers)

    numbers = iter(range(3))
    signals.before_task_publish.connect(count)
    try:
        rows = prepared(preparer, *(Job(task="plain", args=[number]) for number in (1, 2, 3)))
    finally:
        signals.before_task_publish.disconnect(count)
    assert [f'"number": {number}' in row.routing for number, row in enumerate(rows)] == [True] * 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"args": "abc"},
        {"args": [1, 2, 3]},
        {"args": [{1}]},
        {"args": ["\0"]},
        {"kwargs": {"unknown": 1}},
        {"kwargs": {1: 2}},
        {"priority": True},
        {"max_attempts": 1.0},
    ],
    ids=str,
)
def test_wrong_job_after_one_like_it_is_refused(wrong: dict[str, Any], preparer: Preparer) -> None:
    """Also one whose wrong value equals the right one."""
    right = Job(task="plain", args=[1], priority=1, max_attempts=1)
    errors = []
    for given in ([replace(right, **wrong)], [right, replace(right, **wrong)]):
        with pytest.raises(ValidationError) as raised:
            prepared(preparer, *given)
        errors.append(str(raised.value))
    assert errors[0] == errors[1]


def test_error_hides_sensitive_arguments_after_a_job_like_it(preparer: Preparer) -> None:
    with pytest.raises(ValidationError) as raised:
        prepared(preparer, Job(task="secret", args=[1]), Job(task="secret", args=["a password", 2, 3]))
    assert "password" not in str(raised.value)
