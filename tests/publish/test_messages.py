"""From the row to the broker: the message, and who hears of it."""

import ast
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery, Task, signals

from jobhandle_celery import Job, JobStatus, messages
from tests.publish.messages import ADD, Make, received
from tests.support import eventually


def test_the_message_says_which_job_it_is_and_carries_no_times(make: Make) -> None:
    app = make()
    handle = app.jobs.handle()
    handle.submit(app.tasks["tests.add"].s(1, y=2).set(expires=60, time_limit=50, soft_time_limit=40))
    (message,) = received(app)
    job, headers = handle.get_job(), message.headers
    assert message.decode()[:2] == [[1], {"y": 2}]
    assert headers["jobhandle"] == {"id": job.id, "attempt": 1}
    assert (headers["id"], headers["task"]) == (job.task_id, "tests.add")
    assert (headers["eta"], headers["expires"]) == (None, None)
    assert "expiration" not in message.properties
    assert headers["timelimit"] == [50, 40]
    assert headers["kwargsrepr"] == f"{{'job_id': {job.id}, 'y': 2}}"
    assert headers["retries"] == 0


@pytest.mark.parametrize("serializer", ["json", "pickle", "yaml", "msgpack"])
def test_a_job_is_json_whatever_the_app_sends_otherwise(serializer: str, make: Make) -> None:
    app = make(task_serializer=serializer)
    handle = app.jobs.handle()
    handle.submit(Job(task="tests.append_line", args=[datetime(2026, 1, 2, tzinfo=UTC), b"\xff"]))
    (message,) = received(app)
    assert message.content_type == "application/json"
    assert message.decode()[0] == [datetime(2026, 1, 2, tzinfo=UTC), b"\xff"]


@contextmanager
def heard() -> Iterator[list[dict[str, Any]]]:
    """What receivers of Celery's two signals of a publish are given."""
    told: list[dict[str, Any]] = []

    def before(sender: Any = None, **given: Any) -> None:
        told.append({**given, "signal": "before", "sender": sender})
        given["headers"]["added"] = "by a receiver"

    def after(sender: Any = None, **given: Any) -> None:
        told.append({**given, "signal": "after", "sender": sender})

    signals.before_task_publish.connect(before)
    signals.after_task_publish.connect(after)
    try:
        yield told
    finally:
        signals.before_task_publish.disconnect(before)
        signals.after_task_publish.disconnect(after)


def test_receivers_of_a_publish_are_given_what_celery_gives_them(make: Make) -> None:
    app = make()
    task = app.tasks["tests.add"]
    options = {"headers": {"trace": "abc"}, "shadow": "shown", "ignore_result": True, "priority": 3}
    with heard() as plain:
        task.apply_async((1,), {"y": 2}, **options)
    with heard() as told:
        app.jobs.handle().submit(task.s(1, y=2).set(**options))
    assert [one["signal"] for one in told] == ["before", "after"]
    own = {"id", "root_id", "argsrepr", "kwargsrepr"}
    for ours, celerys in zip(told, plain, strict=True):
        assert set(ours) == set(celerys)
        assert set(ours["headers"]) == set(celerys["headers"]) | {"jobhandle"}
        for header in set(celerys["headers"]) - own:
            assert ours["headers"][header] == celerys["headers"][header], header
        for given in set(celerys) - {"headers", "body", "properties", "retry_policy"}:
            assert ours[given] == celerys[given], given
        assert [*ours["body"][0]] == [1]
        assert ours["body"][1:] == celerys["body"][1:]
    assert [message.headers["added"] for message in received(app)] == ["by a receiver"] * 2


def test_a_task_chooses_how_it_is_shown(make: Make) -> None:
    class Shown(Task[..., None]):
        name = "tests.shown"

        def run(self, path: str) -> None: ...

        def shadow_name(self, args: Any, kwargs: Any, options: Any) -> Any:
            return f"shown {args[0]}"

    app = make()
    task = app.register_task(Shown())
    task.delay("a")
    app.jobs.handle().submit(task.s("a"))
    assert [message.headers["shadow"] for message in received(app)] == ["shown a"] * 2


def test_a_job_submitted_in_a_body_is_its_child(make: Make) -> None:
    app = make()

    @app.task(name="parent", shared=False)  # type: ignore[untyped-decorator]
    def parent() -> None:
        app.tasks["tests.add"].delay(1, 2)
        app.jobs.handle().submit(ADD)

    parent.apply(task_id="the-parent")
    plain, job = received(app)
    for header in ("parent_id", "root_id"):
        assert job.headers[header] == plain.headers[header] == "the-parent"


def test_celery_is_told_that_the_task_was_sent(make: Make, redis_url: str) -> None:
    app = make(redis_url, task_send_sent_event=True)
    events: list[Any] = []
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"task-sent": events.append})
        with receiver.consumer_context() as (its_connection, _, _):
            drain(its_connection)  # Redis is told of a subscriber only now
            handle = app.jobs.handle()
            handle.submit(ADD)
            eventually(lambda: drain(its_connection) and events, timeout=10)
    (sent,) = events
    job = handle.get_job()
    assert (sent["uuid"], sent["name"], sent["queue"]) == (job.task_id, "tests.add", job.queue)
    assert sent["kwargs"] == f"{{'job_id': {job.id}}}"


def drain(connection: Any) -> bool:
    with suppress(TimeoutError):
        connection.drain_events(timeout=0.2)
    return True


def test_submitting_from_many_threads_loses_no_message(make: Make, redis_url: str) -> None:
    app = make(redis_url)
    with ThreadPoolExecutor(4) as threads:
        submitted = [*threads.map(lambda _: app.jobs.submit_many([ADD] * 10), range(4))]
    ids = sorted(job_id for some in submitted for job_id in some)
    assert sorted(message.headers["jobhandle"]["id"] for message in received(app)) == ids
    assert app.jobs.count_by_status()[JobStatus.QUEUED] == 40


@pytest.mark.parametrize(
    ("kwargs", "options"),
    [
        ({}, {}),
        ({"y": 2}, {}),
        ({"when": datetime(2024, 2, 29, tzinfo=UTC)}, {}),
        ({"share": math.inf}, {}),
        ({"deep": [[[[{"a": "x" * 5_000}]]]]}, {}),
        ({"job_id": 7}, {}),
        ({"y": 2}, {"kwargsrepr": "***"}),
        ({"y": 2}, {"kwargsrepr": "{'y': '***'}"}),
        ({"y": 2}, {"kwargsrepr": "{'job_id': 7}"}),
        ({"y": 2}, {"kwargsrepr": "{'y': <hidden>}"}),
    ],
)
def test_a_search_for_the_job_id_finds_it_whatever_its_arguments(
    kwargs: dict[str, Any], options: dict[str, Any]
) -> None:
    """Flower reads what is shown of them as a literal, and looks at its keys."""
    shown = messages.kwargs_shown(42, kwargs, options.get("kwargsrepr"), Celery(set_as_current=False))
    assert ast.literal_eval(shown)["job_id"] == 42
