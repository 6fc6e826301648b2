"""Options of this library that a task gives itself: by its own ``apply_async``, or by its attributes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import chain, chord, group

from jobhandle_celery import Job, ValidationError
from tests.apps import make_app
from tests.documentation import blocks


def base_class(app: Any) -> Any:
    """Return the class of the documentation, of whose task one unfinished job has the same arguments."""
    page = blocks("docs/how-to/coming-from-celery.md", "python")
    (code,) = [block.code for block in page if "class OneAtATime" in block.code]
    names = {"app": app}
    exec(code, names)
    one_at_a_time: Any = names["OneAtATime"]

    class Own(one_at_a_time):  # type: ignore[misc]  # untyped
        def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
            options.setdefault("max_attempts", 3)
            options.setdefault("sensitive", ["shelf"])
            return super().apply_async(args, kwargs, **options)

    return Own


def recount(shelf: Any, *more: Any) -> None: ...


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Any]:
    app: Any = make_app("memory://", sqlite_url, {"jobhandle_durable": True})
    app.task(name="own.call", base=base_class(app), shared=False)(recount)
    attributes = {"unique_key": "own", "max_attempts": 3, "sensitive": ["shelf"], "priority": 4}
    app.task(name="own.attributes", shared=False, **attributes)(recount)
    yield app
    app.jobs.close()


WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "delay": lambda app, task: task.delay("a"),
    "apply_async": lambda app, task: task.apply_async(("a",)),
    "a signature": lambda app, task: task.s("a").delay(),
    "a Job": lambda app, task: app.jobs.submit(Job(task=task.name, args=["a"])),
    "submit": lambda app, task: app.jobs.submit(task.s("a")),
    "submit_many": lambda app, task: app.jobs.submit_many([task.s("a"), task.s("a")]),
    "chain": lambda app, task: chain(task.s("a"), app.tasks["tests.add"].si(1, 2)).delay(),
    "a chain's step": lambda app, task: chain(app.tasks["tests.add"].s(1, 2), task.si("a")).delay(),
    "group": lambda app, task: group(task.s("a"), app.tasks["tests.add"].s(1, 2)).delay(),
    "header": lambda app, task: chord([task.s("a")])(app.tasks["tests.add"].si(1, 2)),
    "body": lambda app, task: chord([app.tasks["tests.add"].s(1, 2)])(task.si("a")),
    "link": lambda app, task: app.tasks["tests.add"].apply_async((1, 2), link=task.si("a")),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "key"), [("own.call", "own.call ['a'] {}"), ("own.attributes", "own")])
def test_option_of_task_is_that_of_each_of_its_jobs(app: Any, way: str, name: str, key: str) -> None:
    WAYS[way](app, app.tasks[name])
    (job,) = app.jobs.find(task=name)
    assert (job.unique_key, job.max_attempts) == (key, 3)
    assert job.shown_arguments == (("***",), {})


def test_second_call_returns_the_unfinished_job(app: Any) -> None:
    """As the documentation says of its class."""
    recount = app.tasks["shop.recount"]
    first = recount.delay("a")
    assert recount.delay("a").job_id == app.jobs.submit(recount.s("a")) == first.job_id
    assert recount.delay("b").job_id != first.job_id
    first.revoke()
    assert recount.delay("a").job_id != first.job_id


@pytest.mark.parametrize("name", ["own.call", "own.attributes"])
def test_option_of_caller_takes_precedence(app: Any, name: str) -> None:
    task, given = app.tasks[name], {"unique_key": "mine", "max_attempts": 1}
    task.apply_async(("a",), **given)
    app.jobs.submit(task.s("b").set(**given | {"unique_key": "other"}))
    app.jobs.submit(Job(task=name, args=["c"], unique_key="third", max_attempts=1))
    jobs = app.jobs.find(task=name)
    assert [(job.unique_key, job.max_attempts) for job in jobs] == [("third", 1), ("other", 1), ("mine", 1)]


def test_record_that_is_submitted_again_keeps_its_options(app: Any) -> None:
    task = app.tasks["own.attributes"]
    first = app.jobs.attach(task.apply_async(("a",), max_attempts=1, unique_key="k").job_id)
    first.cancel_job()
    again = app.jobs.attach(app.jobs.submit(first.get_job())).get_job()
    assert (again.max_attempts, again.unique_key) == (1, "k")


def test_own_key_of_unknown_arguments_is_refused(app: Any) -> None:
    """The task would make the same key for all results. A key of the caller is accepted."""
    add, task = app.tasks["tests.add"], app.tasks["own.call"]
    with pytest.raises(ValidationError, match=r"^unique_key: .*immutable signature"):
        chain(add.s(1, 2), task.s()).delay()
    assert app.jobs.find() == []
    chain(add.s(1, 2), task.s().set(unique_key="k")).delay()
    (job,) = app.jobs.find(task="own.call")
    assert job.unique_key == "k"
    chain(add.s(1, 2), app.tasks["own.attributes"].s()).delay()


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("unique_key", recount), ("unique_key", ""), ("max_attempts", 0), ("max_attempts", "3")],
)
def test_invalid_attribute_is_refused_by_name(app: Any, attribute: str, value: Any) -> None:
    app.task(name="own.wrong", shared=False, **{attribute: value})(recount)
    with pytest.raises(ValidationError, match=f"^{attribute}: "):
        app.tasks["own.wrong"].delay("a")
    with pytest.raises(ValidationError, match=f"^{attribute}: "):
        app.jobs.submit(app.tasks["own.wrong"].s("a"))


@pytest.mark.parametrize("option", ["unique_key", "max_attempts", "sensitive"])
def test_route_with_an_option_of_a_job_is_refused_by_name(app: Any, option: str) -> None:
    app.conf.task_routes = {"tests.add": {option: ["a"]}}
    with pytest.raises(ValidationError, match=f"^{option}: "):
        app.tasks["tests.add"].delay(1, 2)
