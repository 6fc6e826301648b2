"""From the row to the broker: Celery's own routing and signals, and a broker that is down."""

import ast
import math
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery, Task, signals
from kombu import Exchange, Queue

from jobhandle_celery import Job, JobStatus, ValidationError, dispatch, messages
from tests.apps import make_app
from tests.servers import RedisServer
from tests.support import eventually

ADD = Job(task="tests.add", args=[1, 2])
NOBODY_LISTENS = {"redis": "redis://127.0.0.1:1/0", "amqp": "amqp://127.0.0.1:1//"}

Make = Callable[..., Any]


@pytest.fixture
def make(sqlite_url: str) -> Iterator[Make]:
    made: list[Any] = []

    def make(broker_url: str = "memory://", **settings: Any) -> Any:
        queue = {"task_default_queue": f"queue-{uuid.uuid4().hex}"}
        made.append(make_app(broker_url, sqlite_url, queue | settings))
        return made[-1]

    yield make
    for app in made:
        app.jobs.close()


def received(app: Any, queue: str | None = None) -> list[Any]:
    """What the broker holds in a queue; it forgets it."""
    messages = []
    with app.connection() as connection:
        channel = connection.default_channel
        while message := channel.basic_get(queue or app.conf.task_default_queue, no_ack=True):
            messages.append(message)
    return messages


def way_of(message: Any) -> Any:
    """How a message went and how it is packed, whatever it says."""
    properties = message.properties
    return (
        message.delivery_info["exchange"],
        message.delivery_info["routing_key"],
        properties["priority"],
        properties["delivery_mode"],
        message.content_type,
        message.content_encoding,
        message.headers.get("compression"),
    )


# Routing.

MEDIA, EXACT, FAN = Exchange("media", "topic"), Exchange("exact", "direct"), Exchange("fan", "fanout")
QUEUES = [
    Queue("default", Exchange(""), routing_key="default"),
    Queue("images", MEDIA, routing_key="image.#"),
    Queue("exact", EXACT, routing_key="the.key"),
    Queue("fan", FAN),
]


def to(**route: Any) -> dict[str, Any]:
    return {"task_routes": {"tests.add": route}}


WAYS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # The queue where it arrives, settings, options of the signature.
    "the default queue": ("default", {}, {}),
    "a queue by its name": ("other", {}, {"queue": "other"}),
    "a route by name": ("slow", to(queue="slow"), {}),
    "a route by pattern": ("slow", {"task_routes": ([("tests.*", {"queue": "slow"})],)}, {}),
    "a route by function": ("slow", {"task_routes": (lambda *_, **__: {"queue": "slow"},)}, {}),
    "a queue before a route": ("fast", to(queue="slow"), {"queue": "fast"}),
    "a topic exchange": ("images", to(exchange="media", routing_key="image.small"), {}),
    "a topic exchange by its queue": ("images", {}, {"queue": "images"}),
    "a queue and a routing key": ("images", to(queue="images", routing_key="image.large"), {}),
    "a direct exchange": ("exact", {}, {"exchange": "exact", "routing_key": "the.key"}),
    "a fanout exchange": ("fan", to(queue="fan"), {}),
    "a priority of the options": ("default", {}, {"priority": 7}),
    "a priority of the route": ("default", to(priority=6), {}),
    "a priority by default": ("default", {"task_default_priority": 4}, {}),
    "a priority by annotation": ("default", {"task_annotations": {"tests.add": {"priority": 2}}}, {}),
    "compression": ("default", {"task_compression": "gzip"}, {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_job_goes_the_way_that_celery_sends_the_task(way: str, make: Make) -> None:
    arrives, settings, options = WAYS[way]
    app = make(task_queues=QUEUES, task_default_queue="default", **settings)
    with app.connection() as connection:
        for queue in QUEUES:
            queue(connection.default_channel).declare()
    app.tasks["tests.add"].apply_async((1, 2), **options)
    (plain,) = received(app, arrives)
    handle = app.jobs.handle()
    handle.submit(app.tasks["tests.add"].s(1, 2).set(**options))
    (message,) = received(app, arrives)
    assert way_of(message) == way_of(plain)
    # And again, by whoever publishes it the next time.
    handle.cancel_job()
    handle.resubmit_job()
    (again,) = received(app, arrives)
    assert way_of(again) == way_of(plain)


def test_the_routing_is_kept_for_whoever_publishes_it_without_knowing_of_it(make: Make) -> None:
    route = to(queue="images", routing_key="image.large")
    elsewhere = make(NOBODY_LISTENS["redis"], task_queues=QUEUES, **route)
    handle = elsewhere.jobs.handle()
    handle.submit(elsewhere.tasks["tests.add"].s(1, 2).set(priority=5))
    assert handle.job_status() is JobStatus.SUBMITTED
    sweeper = make(jobhandle_grace=0.1)
    eventually(lambda: sweeper.jobs.sweep() and handle.job_status() is JobStatus.QUEUED)
    (message,) = received(sweeper, "images")
    assert way_of(message)[:3] == ("media", "image.large", 5)
    assert handle.get_job().queue == "images"


def test_a_queue_that_may_not_be_made_is_refused(make: Make) -> None:
    app = make(task_create_missing_queues=False, task_queues=[Queue("known")], task_default_queue="known")
    with pytest.raises(ValidationError, match=r"queue: .*unknown.*task_queues"):
        app.jobs.handle().submit(Job(task="tests.add", args=[1, 2], queue="unknown"))
    assert app.jobs.find() == []


# The message, and who hears of it.


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


# A broker that is down.


def tries(caplog: pytest.LogCaptureFixture) -> int:
    """How often the broker was not reached."""
    return sum("broker not reached" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("broker", NOBODY_LISTENS)
def test_a_refusing_broker_costs_one_try_and_no_error(
    broker: str, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    app = make(NOBODY_LISTENS[broker])
    for _ in range(3):
        handle = app.jobs.handle()
        handle.submit(ADD)
        assert handle.job_status() is JobStatus.SUBMITTED
    app.jobs.submit_many([ADD] * 5)
    assert tries(caplog) == 1
    assert app.jobs.count_by_status()[JobStatus.SUBMITTED] == 8


class BlackHole:
    """A server that takes every connection and never says a word."""

    def __init__(self) -> None:
        self.connections: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=50)
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                self.connections.append(self._listener.accept()[0])
            except OSError:
                return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for connection in self.connections:
            connection.close()


@pytest.mark.parametrize(
    "broker_url", ["redis://:password@127.0.0.1:{}/0", "redis://127.0.0.1:{}/0", "amqp://127.0.0.1:{}//"]
)
def test_a_silent_broker_is_tried_once_however_much_is_submitted(
    broker_url: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobhandle_celery.broker.BOUND", 0.2)
    with closing(BlackHole()) as hole:
        app = make(broker_url.format(hole.port))
        for _ in range(3):
            app.jobs.handle().submit(ADD)
        app.jobs.submit_many([ADD] * 5)
        assert len(hole.connections) == 1
    assert app.jobs.count_by_status()[JobStatus.SUBMITTED] == 8


def test_jobs_are_sent_by_a_sweep_once_the_broker_is_back(make: Make, private_redis: RedisServer) -> None:
    app = make(private_redis.url, jobhandle_grace=0.1)
    private_redis.stop()
    ids = app.jobs.submit_many([ADD] * 3)
    assert app.jobs.count_by_status()[JobStatus.SUBMITTED] == 3
    # By somebody else, who has not been disappointed yet.
    sweeper = make(private_redis.url, jobhandle_grace=0.1, task_default_queue="another")
    private_redis.start()
    eventually(lambda: sweeper.jobs.sweep() and app.jobs.count_by_status()[JobStatus.QUEUED] == 3)
    assert sorted(message.headers["jobhandle"]["id"] for message in received(app)) == ids


def test_the_same_process_tries_again_after_a_pause(
    make: Make, private_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dispatch, "PAUSES", (0.2,))
    app = make(private_redis.url, jobhandle_grace=0.1)
    private_redis.stop()
    handle = app.jobs.handle()
    handle.submit(ADD)
    eventually(lambda: app.jobs.sweep() and tries(caplog) >= 2)
    private_redis.start()
    eventually(lambda: app.jobs.sweep() and handle.job_status() is JobStatus.QUEUED)
    handle.submit(ADD)
    assert handle.job_status() is JobStatus.QUEUED


def test_a_connection_that_the_broker_has_closed_is_no_broker_that_is_down(
    make: Make, private_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    app = make(private_redis.url)
    handle = app.jobs.handle()
    handle.submit(ADD)
    private_redis.stop()
    private_redis.start()
    handle.submit(ADD)
    assert handle.job_status() is JobStatus.QUEUED
    assert tries(caplog) == 0


def test_plain_calls_go_celerys_own_way_to_the_broker(make: Make, private_redis: RedisServer) -> None:
    app = make(private_redis.url)
    private_redis.stop()
    handle = app.jobs.handle()
    handle.submit(ADD)
    private_redis.start()
    app.tasks["tests.add"].delay(3, 4)
    (message,) = received(app)
    assert "jobhandle" not in message.headers
    assert message.decode()[0] == [3, 4]
    assert handle.job_status() is JobStatus.SUBMITTED


def test_a_broker_url_that_nobody_can_use_does_not_lose_the_job(make: Make) -> None:
    app = make("nosuch://host")
    handle = app.jobs.handle()
    handle.submit(ADD)
    assert handle.job_status() is JobStatus.SUBMITTED
    repaired = make(jobhandle_grace=0.1)
    eventually(lambda: repaired.jobs.sweep() and handle.job_status() is JobStatus.QUEUED)


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
