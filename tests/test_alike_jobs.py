"""Jobs that differ in their arguments and their user alone are prepared as each would be by itself."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from celery import Celery, Task, _state, signals
from celery.app.routes import MapRoute

from jobhandle_celery import Job, ValidationError
from jobhandle_celery.broker.routing import Routing
from jobhandle_celery.broker.sent_tasks import SentCall
from jobhandle_celery.preparer import ROW_LIMIT, TEXT_LIMIT, Preparer
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


def new_preparer(preparer: Preparer) -> Preparer:
    """A preparer that has prepared nothing before, with a router that has routed nothing."""
    return Preparer(Routing(preparer.routing._app))


def singly(preparer: Preparer, *given: object) -> list[NewJob]:
    """Each by a preparer of its own."""
    return [row for job in given for row in prepared(new_preparer(preparer), job)]


def sent(preparer: Preparer, *calls: SentCall) -> list[NewJob]:
    found = (preparer.prepare_sent(call, "ann", "lab") for call in calls)
    return [replace(row, task_id="") for _, prepared in found for row in prepared.jobs]


def one_by_one(preparer: Preparer, *given: object) -> list[NewJob]:
    """Each by a call of its own."""
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
    assert prepared(preparer, *given) == one_by_one(preparer, *given) == singly(preparer, *given)


@pytest.mark.parametrize("wishes", WISHES)
@pytest.mark.parametrize("task", ["plain", "shadowed", "prioritized", "secret", "unknown"])
def test_sent_calls_are_prepared_as_each_by_itself(
    wishes: str, task: str, app: Celery, preparer: Preparer
) -> None:
    """Also those of a task that were called by its name, with a task id, or with other options."""
    registered = app.tasks.get(task)
    calls = [
        SentCall(task, (number,), None, {"task_id": task_id, **WISHES[wishes], **further}, caller)
        for caller in (registered, None)
        for further in ({}, {"time_limit": 9}, {"time_limit": 9.0}, {"ignore_result": False})
        for number, task_id in ((1, None), (2, "mine"), (3, None))
    ]
    assert sent(preparer, *calls) == [row for call in calls for row in sent(new_preparer(preparer), call)]


def test_map_over_an_iterator_is_prepared_after_one_like_it(app: Celery, preparer: Preparer) -> None:
    task = app.tasks["plain"]
    for numbers in ([1], [2]):
        kwargs = {"task": task.s(), "it": iter(numbers)}
        (row,) = sent(preparer, SentCall("celery.map", (), kwargs, {}, app.tasks["celery.map"]))
        assert f'"it": {numbers}' in row.kwargs


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
        *(replace(job, meta=value) for value in (1, True, 1.0, 0.0, -0.0)),
        *(replace(job, time_limit=value) for value in (1, 1.0)),
        *(replace(job, sensitive=[position]) for position in (0, 1)),
    ]
    assert prepared(preparer, *given) == one_by_one(preparer, *given) == singly(preparer, *given)


@pytest.fixture
def routed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The jobs that were routed."""
    routed: list[object] = []
    route = Routing.route

    def counted(self: Routing, job: Any, *rest: Any) -> Any:
        routed.append(job)
        return route(self, job, *rest)

    monkeypatch.setattr(Routing, "route", counted)
    return routed


@pytest.mark.parametrize("prepare", [prepared, one_by_one])
def test_only_the_first_of_alike_jobs_is_routed(
    prepare: Callable[..., list[NewJob]], preparer: Preparer, routed: list[object]
) -> None:
    """Of each kind, in any order."""
    plain, urgent = ([Job(task="plain", args=[n], priority=p) for n in (1, 2, 3)] for p in (None, 9))
    prepare(preparer, *(job for both in zip(plain, urgent, strict=True) for job in both))
    assert len(routed) == 2


def test_only_the_first_of_alike_calls_is_routed(
    app: Celery, preparer: Preparer, routed: list[object]
) -> None:
    options = {"task_id": None, "serializer": "json", "priority": 3}
    sent(preparer, *(SentCall("plain", (number,), None, options, app.tasks["plain"]) for number in (1, 2, 3)))
    assert len(routed) == 1


def test_alike_jobs_have_users_of_their_own(preparer: Preparer, routed: list[object]) -> None:
    users = [("ann", "lab"), ("bob", None), (None, None)]
    rows = [row for user in users for row in preparer.prepare([Job(task="plain", args=[1])], *user).jobs]
    assert [(row.username, row.groupname) for row in rows] == users
    assert len(routed) == 1


def test_jobs_of_a_running_task_have_it_as_their_parent(app: Celery, preparer: Preparer) -> None:
    """And other jobs have not, before and afterwards."""
    job, call = Job(task="plain", args=[1]), SentCall("plain", (1,), None, {}, None)

    def parents() -> list[bool]:
        rows = [*prepared(preparer, job), *prepared(preparer, job, job), *sent(preparer, call, call)]
        return ["submitting" in row.routing for row in rows]

    assert not any(parents())
    task: Any = app.tasks["plain"]
    stack: Any = vars(_state)["_task_stack"]
    stack.push(task)
    task.push_request(id="submitting", called_directly=False)
    try:
        assert all(parents())
    finally:
        task.pop_request()
        stack.pop()
    assert not any(parents())


def reregister(app: Celery) -> None:
    app.tasks.unregister("plain")
    app.task(name="plain", shared=False, priority=5)(other_body)


def other_body(value: int) -> None: ...


def apply_urgently(self: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
    return Task.apply_async(self, args, kwargs, **options | {"priority": 9})


def route(app: Celery, routes: Any) -> None:
    app.conf.task_routes = routes
    app.amqp.flush_routes()
    amqp: Any = app.amqp
    amqp.router = amqp.Router()


CHANGES: dict[str, Callable[[Celery], Any]] = {
    "attempts of the task": lambda app: setattr(app.tasks["plain"], "max_attempts", 7),
    "a key of the task": lambda app: setattr(app.tasks["plain"], "unique_key", "nightly"),
    "sensitive arguments of the task": lambda app: setattr(app.tasks["plain"], "sensitive", ["number"]),
    "another task of the name": reregister,
    "an apply_async of the task's own": lambda app: setattr(
        type(app.tasks["plain"]), "apply_async", apply_urgently
    ),
    "a name in logs of the task's own": lambda app: setattr(
        type(app.tasks["plain"]), "shadow_name", Shadowed.shadow_name
    ),
    "another route": lambda app: route(app, {"plain": {"queue": "elsewhere"}}),
    "a route that is a function": lambda app: route(app, [lambda *_, **__: {"queue": "elsewhere"}]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_job_after_a_change_is_prepared_anew(change: str, app: Celery, preparer: Preparer) -> None:
    job = Job(task="plain", args=[1])
    (before,) = prepared(preparer, job)
    CHANGES[change](app)
    (after,) = prepared(preparer, job)
    assert [after] == singly(preparer, job)
    assert after != before


@pytest.mark.parametrize("how", [prepared, sent])
def test_row_made_while_something_changed_is_not_cached(
    how: Callable[..., list[NewJob]], app: Celery, preparer: Preparer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may change a task once it is routed."""
    task: Any = app.tasks["plain"]
    given: Any = Job(task="plain", args=[1])
    if how is sent:
        given = SentCall("plain", (1,), None, {}, task)
    route = Routing.route

    def changing(self: Routing, *args: Any) -> Any:
        routed = route(self, *args)
        task.max_attempts = 7
        return routed

    with monkeypatch.context() as patch:
        patch.setattr(Routing, "route", changing)
        (before,) = how(preparer, given)
    (after,) = how(preparer, given)
    assert (before.max_attempts, after.max_attempts) == (1, 7)


@pytest.mark.parametrize("how", [prepared, sent])
def test_row_made_while_a_handler_was_connected_is_not_cached(
    how: Callable[..., list[NewJob]], app: Celery, preparer: Preparer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another thread: what it adds to this job's message is not for others."""

    def add(headers: Any, **_: Any) -> None:
        headers["trace"] = "of one request"

    given: Any = Job(task="plain", args=[1])
    if how is sent:
        given = SentCall("plain", (1,), None, {}, app.tasks["plain"])
    route = Routing.route

    def connecting(self: Routing, *args: Any) -> Any:
        signals.before_task_publish.connect(add)
        return route(self, *args)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(Routing, "route", connecting)
            (with_handler,) = how(preparer, given)
    finally:
        signals.before_task_publish.disconnect(add)
    (without,) = how(preparer, given)
    assert ("trace" in with_handler.routing, "trace" in without.routing) == (True, False)


@pytest.mark.parametrize("wrong", [None, 0, False, "", [], {}], ids=repr)
@pytest.mark.parametrize("field", ["headers", "sensitive"])
def test_empty_value_is_refused_or_accepted_as_in_the_first_job(
    field: str, wrong: Any, preparer: Preparer
) -> None:
    """0 may be meant as the first position: the argument must not be shown."""
    outcomes = []
    for known in (new_preparer(preparer), preparer):
        if known is preparer:
            prepared(preparer, Job(task="plain", args=[1]))
        try:
            prepared(known, Job(task="plain", args=[1], **{field: wrong}))
            outcomes.append("accepted")
        except ValidationError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("wrong", [None, 0, "", []], ids=repr)
def test_task_whose_sensitive_is_empty_is_checked_again(wrong: Any, app: Celery, preparer: Preparer) -> None:
    job, task = Job(task="plain", args=[1]), app.tasks["plain"]
    prepared(preparer, job)
    task.sensitive = wrong  # type: ignore[attr-defined]
    outcomes = []
    for known in (new_preparer(preparer), preparer):
        try:
            prepared(known, job)
            outcomes.append("accepted")
        except ValidationError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


class ByArguments(MapRoute):
    def __call__(self, name: Any, *args: Any, **kwargs: Any) -> Any:
        return {"queue": f"queue-{args[0][0]}"} if args and args[0] else None


def test_route_of_a_class_of_ones_own_is_asked_for_each_job(app: Celery, preparer: Preparer) -> None:
    app.conf.task_routes = [ByArguments({})]
    rows = one_by_one(preparer, *(Job(task="routed", args=[number]) for number in (1, 2)))
    assert [row.queue for row in rows] == ["queue-1", "queue-2"]


def test_error_after_a_change_is_that_of_the_new_task(app: Celery, preparer: Preparer) -> None:
    prepared(preparer, Job(task="plain", args=[1], kwargs={"further": 2}))
    reregister(app)
    with pytest.raises(ValidationError, match="further"):
        prepared(preparer, Job(task="plain", args=[1], kwargs={"further": 2}))


def test_true_after_one_is_refused_as_an_attribute_of_a_task(app: Celery, preparer: Preparer) -> None:
    """They are equal."""
    task: Any = app.tasks["plain"]
    task.max_attempts = 1
    prepared(preparer, Job(task="plain", args=[1]))
    task.max_attempts = True
    with pytest.raises(ValidationError, match="max_attempts"):
        prepared(preparer, Job(task="plain", args=[1]))


def test_unknown_task_is_refused_once_the_app_is_eager(app: Celery, preparer: Preparer) -> None:
    prepared(preparer, Job(task="unknown"))
    app.conf.task_always_eager = True
    with pytest.raises(ValidationError, match="always_eager"):
        prepared(preparer, Job(task="unknown"))


def test_cached_rows_are_limited(preparer: Preparer) -> None:
    cached = preparer._cache._rows
    for number in range(ROW_LIMIT + 1):
        one_by_one(preparer, Job(task="plain", args=[1], message=f"message {number}"))
        assert 0 < len(cached) <= ROW_LIMIT


@pytest.mark.parametrize(
    "rare", [{"unique_key": "a"}, {"eta": "2100-01-01T00:00:00+00:00"}, {"argsrepr": "(...)"}]
)
def test_rows_of_jobs_that_are_rarely_alike_are_not_cached(
    rare: dict[str, Any], app: Celery, preparer: Preparer
) -> None:
    sent(preparer, SentCall("plain", (1,), None, rare, app.tasks["plain"]))
    prepared(preparer, app.signature("plain", args=(1,)).set(**rare))
    assert not preparer._cache._rows


def test_long_texts_are_not_cached(preparer: Preparer) -> None:
    prepared(preparer, Job(task="plain", args=[1], message="x" * (TEXT_LIMIT + 1)))
    assert not preparer._cache._rows
    prepared(preparer, Job(task="plain", args=["x" * (TEXT_LIMIT + 1)]))
    assert "xx" not in repr(preparer._cache._rows)


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
