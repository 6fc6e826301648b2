"""Which canvases become trees of jobs, and which messages of theirs stay plain."""

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, chain, chord, group, signals
from celery.result import GroupResult

from jobhandle_celery import (
    ValidationError,
)
from tests.broker.messages import received

Make = Callable[..., Any]


def take(*args: Any, **kwargs: Any) -> list[Any]:
    return list(args)


@pytest.fixture
def make(sqlite_url: str, make_jobs_app: Callable[..., Any]) -> Make:
    def make(**settings: Any) -> Any:
        app = make_jobs_app(sqlite_url, **settings)
        app.task(name="shop.durable", shared=False, durable=True)(take)
        app.task(name="shop.plain", shared=False)(take)
        return app

    return make


@pytest.fixture
def app(make: Make) -> Any:
    return make()


def call(canvas: Any, *args: Any) -> Any:
    return canvas(*args)


def test_canvas_with_a_durable_task_is_a_tree(app: Any) -> None:
    result: Any
    durable, plain = app.tasks["shop.durable"], app.tasks["shop.plain"]
    canvas: Any = chain(plain.s(2), durable.s())
    result = canvas.apply_async((1,), priority=3)
    root, first, second = sorted(app.jobs.find(), key=lambda job: job.id)
    assert (result.job_id, result.id, root.kind) == (root.id, root.task_id, "chain")
    assert (first.args, second.args, list(second.after)) == ([1, 2], [], [first.id])
    assert (first.priority, second.priority) == (3, None)  # as Celery's chain

    result = call(group(durable.s(number) for number in range(3)), 7)
    assert type(result).__mro__[1] is GroupResult
    members = app.jobs.attach(result.job_id).members()
    assert [child.job_id for child in result.results] == [member.id for member in members]
    assert [member.args for member in members] == [[7, 0], [7, 1], [7, 2]]
    assert result.revoke() == "Cancelled"
    assert {child.state for child in result.results} == {"REVOKED"}

    result = call(chord([plain.s(1), plain.s(2)]), durable.s(x=5))
    assert app.jobs.attach(result.job_id).get_job().kind == "chord"
    assert [job.kwargs for job in app.jobs.attach(result.job_id).members()][-1] == {"x": 5}


def test_map_of_a_durable_task_is_a_job(app: Any) -> None:
    durable, plain = app.tasks["shop.durable"], app.tasks["shop.plain"]
    for canvas in (durable.map([1, 2]), durable.starmap([(1, 2), (3, 4)])):
        result = canvas.delay()
        (job,) = app.jobs.find(limit=1)
        assert (result.job_id, job.task, job.kwargs["task"]["task"]) == (job.id, canvas.task, "shop.durable")
        assert received(app)[-1].headers["id"] == result.id
    number = len(app.jobs.find())
    plain.map([1]).delay()
    plain.starmap([(1, 2)]).delay()
    plain.chunks([(1, 2), (3, 4)], 1)()
    app.send_task("celery.map")
    assert len(received(app)) == 5
    assert len(app.jobs.find()) == number
    app.conf.task_always_eager = True
    assert durable.map([1, 2]).delay().get() == [[1], [2]]
    assert plain.map([1, 2]).delay().get() == [[1], [2]]
    assert len(app.jobs.find()) == number + 1


def test_chunks_of_a_durable_task_are_a_tree(make: Make) -> None:
    app = make(task_routes={"shop.durable": "mapped"})
    chunks = app.tasks["shop.durable"].chunks([(1, 2), (3, 4), (5, 6)], 2)
    for result, queue in (
        (chunks.apply_async(priority=3), "mapped"),
        (chunks(), "mapped"),
        (chunks.group()(), app.conf.task_default_queue),  # Celery's group has forgotten what it applies
    ):
        members = app.jobs.attach(result.job_id).members()
        assert [member.job_id for member in result.results] == [member.id for member in members]
        assert [member.kwargs["it"] for member in members] == [[[1, 2], [3, 4]], [[5, 6]]]
        assert {(member.task, member.queue) for member in members} == {("celery.starmap", queue)}


def test_canvas_of_plain_tasks_stays_plain(app: Any) -> None:
    plain = app.tasks["shop.plain"]
    chain(plain.s(2), plain.s()).delay()
    group(plain.s(2), plain.s()).delay()
    assert len(received(app)) == 3
    assert app.jobs.find() == []


def test_generator_of_plain_tasks_is_published_while_it_is_read(
    sqlite_url: str, redis_url: str, make_jobs_app: Callable[..., Any]
) -> None:
    """In an app without durable tasks, as Celery does with this result backend."""
    seen: list[list[str]] = []
    plain = Celery("plain", broker="memory://", backend=redis_url, set_as_current=False)
    for app in (plain, make_jobs_app(sqlite_url, result_backend=redis_url)):
        steps: list[str] = []
        task = app.task(name="shop.taken", shared=False)(take)

        def header(steps: list[str] = steps, task: Any = task) -> Any:
            for number in range(5):
                steps.append(f"made {number}")
                yield task.s(number)

        def publish(steps: list[str] = steps, **_: Any) -> None:
            steps.append("published")

        signals.before_task_publish.connect(publish)
        canvas: Any = chord
        canvas(header(), app=app)(task.s())
        signals.before_task_publish.disconnect(publish)
        seen.append(steps)
    assert seen[0] == seen[1]
    assert seen[0].index("published") < seen[0].index("made 4")


def test_rest_of_a_plain_canvas_stays_plain(app: Any) -> None:
    """One that was published before its tasks became durable."""
    durable = app.tasks["shop.durable"]
    durable.s(1).apply_async(chain=[durable.s()])
    group(durable.s(2), durable.s(3)).apply_async(chain=[durable.s()])
    assert {"jobhandle" in message.headers for message in received(app)} == {False}
    assert app.jobs.find() == []
    durable.s(1).apply_async(chain=[])  # the last one of a chain
    assert len(app.jobs.find()) == 1


def test_callbacks_are_jobs_that_need_the_task(app: Any) -> None:
    durable, plain = app.tasks["shop.durable"], app.tasks["shop.plain"]
    result = durable.apply_async((1,), task_id="its id", link=[plain.s(2), plain.si(3)])
    job, *callbacks = sorted(app.jobs.find(), key=lambda job: job.id)
    assert (job.id, job.task_id) == (result.job_id, "its id")
    assert [(callback.args, list(callback.after)) for callback in callbacks] == [
        ([2], [job.id]),
        ([3], [job.id]),
    ]
    with pytest.raises(ValidationError, match=r"^task_id: "):
        durable.apply_async((1,), task_id="its id", link=plain.s(2))
    assert len(app.jobs.find()) == 3


@pytest.mark.parametrize("kind", ["chain", "group", "chord"])
@pytest.mark.parametrize("way", ["call", "option"])
def test_task_id_of_a_canvas_is_that_of_its_root(app: Any, kind: str, way: str) -> None:
    task = app.tasks["shop.durable"]
    canvas: Any = {
        "chain": lambda: chain(task.si(1), task.si(2)),
        "group": lambda: group(task.si(1), task.si(2)),
        "chord": lambda: chord([task.si(1)], task.si(2)),
    }[kind]

    def call(task_id: str) -> Any:
        if way == "call":
            return canvas().apply_async(task_id=task_id)
        return canvas().set(task_id=task_id).delay()

    result = call("mine")
    root = app.jobs.attach(result.job_id).get_job()
    assert (result.id, root.task_id, root.kind) == ("mine", "mine", kind)
    assert "mine" not in {job.task_id for job in app.jobs.find(root=root.id)}
    for task_id in ("mine", "x" * 37):
        with pytest.raises(ValidationError, match=r"^task_id: "):
            call(task_id)
    assert len(app.jobs.find()) == 1 + len(app.jobs.find(root=root.id))
