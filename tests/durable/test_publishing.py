"""Which calls of Celery submit a job, each exactly once."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery, Task, beat, shared_task, signals
from celery.result import AsyncResult, EagerResult
from celery.schedules import schedule

from jobhandle_celery import (
    ConfigurationError,
    DatabaseUnavailableError,
    JobResult,
    Jobs,
    ValidationError,
    current_job,
)
from tests.broker.messages import received

Make = Callable[..., Any]
BaseTask: Any = Task


class Counting(BaseTask):  # type: ignore[misc]  # untyped in its stubs
    """Counts the calls of its `apply_async`."""

    durable = True
    calls = 0

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        Counting.calls += 1
        return super().apply_async((*(args or ()), "added"), kwargs, **{**options, "priority": 4})


class Once(BaseTask):  # type: ignore[misc]  # untyped in its stubs
    """Publishes nothing, as celery-singleton for a queued task."""

    durable = True

    def apply_async(self, *args: Any, **options: Any) -> Any:
        return self.AsyncResult("another's")


def take(*args: Any, **kwargs: Any) -> list[Any]:
    return list(args)


@pytest.fixture
def make(sqlite_url: str, make_jobs_app: Callable[..., Any]) -> Make:
    def make(**settings: Any) -> Any:
        app = make_jobs_app(sqlite_url, **settings)
        tasks: dict[str, dict[str, Any]] = {
            "shop.durable": {"durable": True},
            "shop.plain": {},
            "shop.excluded": {"durable": False},
            "shop.counting": {"base": Counting},
            "shop.once": {"base": Once},
        }
        for name, options in tasks.items():
            app.task(name=name, shared=False, **options)(take)
        return app

    return make


@pytest.fixture
def app(make: Make) -> Any:
    return make()


CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "delay": lambda app, task: task.delay(1, 2),
    "apply_async": lambda app, task: task.apply_async((1, 2)),
    "send_task": lambda app, task: app.send_task(task.name, (1, 2)),
    "send_task by keywords": lambda app, task: app.send_task(name=task.name, args=(1, 2)),
    "send_task by positions": lambda app, task: app.send_task(task.name, (1, 2), {}, None, None),
    "signature": lambda app, task: task.s(1, 2).apply_async(),
    "signature with arguments": lambda app, task: task.s(2).delay(1),
    "signature by name": lambda app, task: app.signature(task.name, (1, 2)).apply_async(),
    "beat": lambda app, task: _beat(app, task.name),
}


def _beat(app: Any, name: str) -> Any:
    scheduler = beat.Scheduler(app, lazy=True)
    entry = scheduler.Entry(
        name="entry", task=name, schedule=schedule(1), args=(1, 2), kwargs={}, options={}, app=app
    )
    return scheduler.apply_async(entry, advance=False)


@pytest.mark.parametrize("call", CALLS)
def test_each_call_submits_one_job_and_sends_one_message(call: str, app: Any) -> None:
    published: list[Any] = []
    signals.before_task_publish.connect(lambda **given: published.append(given["headers"]["id"]), weak=False)
    receivers = signals.before_task_publish.receivers
    try:
        result = CALLS[call](app, app.tasks["shop.durable"])
    finally:
        receivers.clear()
    assert isinstance(result, JobResult)
    (job,) = app.jobs.find()
    assert (job.id, job.task_id, job.task, job.args) == (result.job_id, result.id, "shop.durable", [1, 2])
    (message,) = received(app)
    assert message.headers["jobhandle"]["id"] == job.id
    assert message.headers["id"] == job.task_id
    assert published == [job.task_id]


@pytest.mark.parametrize("call", CALLS)
def test_each_call_of_a_plain_task_sends_a_plain_message(call: str, app: Any) -> None:
    result = CALLS[call](app, app.tasks["shop.plain"])
    assert isinstance(result, AsyncResult)
    assert not isinstance(result, JobResult)
    (message,) = received(app)
    assert "jobhandle" not in message.headers
    assert app.jobs.find() == []


def test_patterns_and_true_choose_tasks_of_the_app(make: Make) -> None:
    def durable(app: Any, name: str) -> bool:
        return isinstance(app.send_task(name), JobResult)

    app = make(jobhandle_durable=True)
    assert durable(app, "shop.plain")
    assert not durable(app, "shop.excluded")
    assert not durable(app, "celery.backend_cleanup")
    assert not durable(app, "elsewhere.plain")

    app = make(jobhandle_durable=["elsewhere.*", "celery.*"])
    assert durable(app, "elsewhere.plain")
    assert not durable(app, "shop.plain")
    assert not durable(app, "celery.backend_cleanup")
    assert durable(app, "shop.durable")

    with pytest.raises(ConfigurationError, match=r"^jobhandle_durable: "):
        make(jobhandle_durable="shop.*").send_task("shop.plain")


def test_own_apply_async_runs_once(app: Any) -> None:
    """Before the row is written, and not again in the dry run of its route."""
    for number in range(2):  # the second finds the route in the cache
        Counting.calls = 0
        app.tasks["shop.counting"].delay(number)
        assert Counting.calls == 1
        job = app.jobs.find()[0]
        assert (job.args, job.priority) == ([number, "added"], 4)


def test_own_apply_async_that_publishes_nothing_submits_nothing(app: Any) -> None:
    assert app.tasks["shop.once"].delay().id == "another's"
    assert app.jobs.find() == []


def test_task_of_a_registry_that_is_not_final_is_durable(sqlite_url: str) -> None:
    app = Celery("lazy", broker="memory://", set_as_current=False)
    jobs = Jobs(app, sqlite_url)

    @app.task(name="lazy.task", durable=True, shared=False)
    def task() -> None: ...

    assert isinstance(app.send_task("lazy.task"), JobResult)
    jobs.close()


def test_shared_task_is_durable(make: Make) -> None:
    shared: Any = shared_task
    shared(name="shop.shared", durable=True)(take)
    app = make()
    assert isinstance(app.tasks["shop.shared"].delay(), JobResult)


@pytest.mark.parametrize("name", ["shop.durable", "shop.counting"])
def test_inline_call_is_a_function_call(name: str, app: Any) -> None:
    task = app.tasks[name]
    assert task(1, 2) == [1, 2]
    assert isinstance(task.apply((1, 2)), EagerResult)
    assert task.s(1, 2)() == [1, 2]
    assert app.jobs.find() == []


def test_retry_of_a_plain_message_stays_plain(app: Any) -> None:
    """One that was published before its task became durable."""
    task = app.tasks["shop.durable"]
    task.push_request(id="the id", called_directly=False, args=(), kwargs={}, retries=0, delivery_info={})
    try:
        with pytest.raises(Exception, match="Retry in 180s"):
            task.retry()
    finally:
        task.pop_request()
    (message,) = received(app)
    assert (message.headers["id"], message.headers["retries"]) == ("the id", 1)
    assert app.jobs.find() == []


def test_wrong_arguments_are_celerys_type_error(app: Any) -> None:
    def typed(x: int) -> None: ...

    task = app.task(name="shop.typed", durable=True, shared=False)(typed)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        task.delay()
    assert app.jobs.find() == []


def test_unavailable_database_is_an_error(make_jobs_app: Callable[..., Any]) -> None:
    app = make_jobs_app("postgresql+psycopg://127.0.0.1:1/none", jobhandle_durable=True)
    with pytest.raises(DatabaseUnavailableError):
        app.tasks["tests.add"].delay(1, 2)
    assert received(app) == []


def test_unkept_results_are_refused_before_a_row(app: Any) -> None:
    with pytest.raises(ValidationError, match=r"^args: "):
        app.tasks["shop.durable"].delay(object())
    assert app.jobs.find() == []


# Eager.


@pytest.fixture
def eager(make: Make) -> Any:
    return make(task_always_eager=True)


def test_eager_call_runs_as_a_job(eager: Any) -> None:
    def body() -> Any:
        job = current_job()
        return None if job is None else job.job_id

    own_id = eager.task(name="shop.own_id", durable=True, shared=False)(body)
    result = own_id.delay()
    assert isinstance(result, JobResult)
    assert result.get() == result.job_id
    assert own_id.apply().get() is None
    assert eager.send_task("shop.own_id").successful()
    assert len(eager.jobs.find(status="Finished")) == 2
    plain = eager.tasks["shop.plain"].delay(1)
    assert isinstance(plain, EagerResult)
    assert plain.get() == [1]
    assert len(eager.jobs.find()) == 2


# Options of the row.


def test_times_become_those_of_the_row(app: Any) -> None:
    task = app.tasks["shop.durable"]
    task.apply_async(countdown=3600, expires=7200)
    job = app.jobs.find()[0]
    assert [
        round((time - job.submitted) / timedelta(hours=1)) for time in (job.scheduled_for, job.expires)
    ] == [1, 2]
    assert received(app) == []


def test_task_id_is_that_of_the_row_and_unique(app: Any) -> None:
    task = app.tasks["shop.durable"]
    assert task.apply_async(task_id="mine").id == "mine"
    assert app.jobs.find()[0].task_id == "mine"
    with pytest.raises(ValidationError, match=r"^task_id: 'mine'"):
        task.apply_async(task_id="mine")
    with pytest.raises(ValidationError, match=r"^task_id: "):
        task.apply_async(task_id="x" * 37)
    assert len(app.jobs.find()) == 1


def test_unique_key_returns_the_result_of_the_unfinished_job(app: Any) -> None:
    task = app.tasks["shop.durable"]
    first, second = (task.apply_async(unique_key="key") for _ in range(2))
    assert (first.job_id, first.id) == (second.job_id, second.id)
    assert len(received(app)) == 1
