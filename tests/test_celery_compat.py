"""Contracts with Celery, kombu and amqp: each test says what breaks when a release changes private API."""

import socket
from contextlib import nullcontext
from typing import Any

import pytest
import redis
from celery import Celery, Task
from kombu import Connection, Producer, Queue
from kombu.transport import pyamqp, virtual
from kombu.transport.redis import Channel, QoS

from jobhandle_celery import celery_compat
from tests.apps import make_app
from tests.patches import PATCHES


@pytest.fixture
def producer(redis_url: str) -> Any:
    with Connection(redis_url) as connection:
        yield Producer(connection)


def test_redis_channel_borrows_its_clients(producer: Any) -> None:
    """Otherwise `RedisTransport` falls back to kombu: batches to Redis take twice as long."""
    lent: list[Any] = []

    def lend(client: Any = None) -> Any:
        lent.append(client)
        return nullcontext(shared)

    shared = celery_compat.share_redis_client(producer.channel, lend)
    producer.publish({}, routing_key="q")
    assert lent
    assert shared.llen("q") == 1


def test_redis_channel_keeps_its_client(producer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a worker makes two clients for each message, a sixth of its main process's time."""
    made: list[Any] = []
    channel = producer.channel

    def make(**options: Any) -> Any:
        made.append(redis.Redis(**options))
        return made[-1]

    monkeypatch.setattr(channel, "Client", make)
    celery_compat.keep_redis_client(channel)
    queue: Any = Queue("q", channel=channel)
    queue.declare()

    def pass_on() -> None:
        for number in range(3):
            producer.publish(number, routing_key="q")
            message = queue.get()
            assert message.payload == number
            message.ack()
        assert channel.qos.channel is channel
        assert not channel._create_client().exists(channel.unacked_key)

    pass_on()
    assert len(made) == 1
    channel._disconnect_pools()  # as after an error
    pass_on()
    assert len(made) == 2
    assert made[0].connection_pool is not made[1].connection_pool
    assert channel._create_client(asynchronous=True) not in made[:2]


@pytest.mark.parametrize("missing", ["_create_client", "pool"])
def test_channel_that_makes_its_clients_otherwise_is_left_alone(missing: str) -> None:
    parts = {"_create_client": object(), "pool": object()}
    del parts[missing]
    channel = type("Channel", (), {"__module__": "kombu.transport.redis", **parts})()
    celery_compat.keep_redis_client(channel)
    assert vars(channel) == {}


def test_channel_of_another_broker_is_left_alone() -> None:
    with Connection("memory://") as connection:
        channel: Any = connection.default_channel
        before = set(vars(channel))
        celery_compat.keep_redis_client(channel)
        assert set(vars(channel)) == before


def refuse(*_: Any) -> bool:
    return False


def nothing() -> None:
    pass


def test_notes_of_unacknowledged_messages_are_those_of_kombu(producer: Any) -> None:
    """Otherwise kombu cannot put a message back into its queue, or a note stays in Redis."""
    channel, client = producer.channel, producer.channel._create_client()
    queue: Any = Queue("q", channel=channel)
    queue.declare()
    flushed: list[None] = []
    write = celery_compat.intercept_redis_qos(channel, refuse, refuse, lambda: flushed.append(None))
    assert write is not None
    producer.publish("body", routing_key="q")
    message = queue.get()
    tag = message.delivery_tag
    by_kombu = client.hgetall(channel.unacked_key), client.zrange(channel.unacked_index_key, 0, -1)
    assert by_kombu[1] == [tag.encode()]
    write({}, [tag])
    assert not client.exists(channel.unacked_key, channel.unacked_index_key)
    write({tag: (5.0, message)}, [])
    assert by_kombu == (client.hgetall(channel.unacked_key), client.zrange(channel.unacked_index_key, 0, -1))
    assert client.zscore(channel.unacked_index_key, tag) == 5.0
    assert flushed == []
    channel.close()
    assert flushed
    assert client.llen("q") == 1


@pytest.mark.parametrize("patched", PATCHES)
@pytest.mark.parametrize("name", celery_compat._QOS_METHODS)
def test_patched_qos_is_left_alone(
    producer: Any, monkeypatch: pytest.MonkeyPatch, patched: Any, name: str
) -> None:
    """A tool that watches deliveries sees each."""
    monkeypatch.setattr(QoS, name, patched(getattr(QoS, name)))
    qos = producer.channel.qos
    before = set(vars(qos))
    assert celery_compat.intercept_redis_qos(producer.channel, refuse, refuse, nothing) is None
    assert set(vars(qos)) == before


def test_qos_of_another_broker_is_left_alone() -> None:
    with Connection("memory://") as connection:
        channel: Any = connection.default_channel
        qos = channel.qos
        before = set(vars(qos))
        found = celery_compat.intercept_redis_qos(channel, refuse, refuse, nothing)
        assert found is None
        assert set(vars(qos)) == before


@pytest.mark.parametrize("patched", PATCHES)
def test_message_to_redis_passes_known_methods(
    producer: Any, monkeypatch: pytest.MonkeyPatch, patched: Any
) -> None:
    """Otherwise no message to Redis is published by `RedisTransport`, or a tool's patch is bypassed."""
    assert celery_compat.publishes_by_kombu(producer)
    methods: list[tuple[Any, str]] = [(Producer, name) for name in celery_compat._PRODUCER_METHODS]
    methods += [(Channel, name) for name in celery_compat._REDIS_METHODS]
    for kind, name in methods:
        with monkeypatch.context() as patch:
            patch.setattr(kind, name, patched(getattr(kind, name)))
            assert not celery_compat.publishes_by_kombu(producer), name


@pytest.mark.parametrize("broker", ["redis", pytest.param("rabbitmq", marks=pytest.mark.faults)])
def test_disconnect_keeps_the_default_socket_timeout(
    broker: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise closing a connection gives new sockets of all other threads its timeout, for a moment."""
    connection: Any = Connection(request.getfixturevalue(f"{broker}_url"))
    _ = connection.default_channel
    changes: list[float | None] = []
    monkeypatch.setattr(socket, "setdefaulttimeout", changes.append)
    celery_compat.disconnect(connection)
    celery_compat.disconnect(connection)
    assert (changes, connection.connected) == ([], False)


def test_amqp_alone_disconnects_by_collect() -> None:
    """Otherwise a broken connection to RabbitMQ is closed by a handshake, which takes its timeout."""
    assert hasattr(pyamqp.Transport, "_collect")
    assert not hasattr(virtual.Transport, "_collect")


def test_batches_are_used_where_kombu_has_them(producer: Any) -> None:
    """Otherwise kombu sends each message of a batch to Redis singly."""
    has_batches = hasattr(Producer, "batch")  # from kombu 5.7 on
    assert celery_compat.supports_batches(producer) == has_batches
    with celery_compat.batch(producer, 2):
        producer.publish({}, routing_key="q")
    assert producer.channel.queue_declare("q", passive=True).message_count == 1


@pytest.mark.parametrize("patched", PATCHES)
def test_publishing_is_celerys_own_until_it_is_patched(monkeypatch: pytest.MonkeyPatch, patched: Any) -> None:
    """Otherwise every submit is published to a recorder, or a tool's patch has no effect on jobs."""
    app: Any = make_app("memory://", None)
    task = app.tasks["tests.add"]
    assert celery_compat.is_published_by_celery(app, task)
    for owner, name in ((Celery, "send_task"), (Task, "apply_async")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, patched(getattr(owner, name)))
            assert not celery_compat.is_published_by_celery(app, task)


def test_celery_makes_its_sender_by_a_method_of_amqp() -> None:
    """Otherwise no job can be submitted whose publishing is patched or watched by signal handlers."""
    replaced: list[dict[str, Any]] = []

    def layer(amqp: Any, **attributes: Any) -> Any:
        replaced.append(attributes)
        return amqp

    sender = celery_compat.task_sender(make_app("memory://", None).amqp, layer)
    assert replaced == [{"_event_dispatcher": None}]
    assert callable(sender)


def test_send_task_asks_no_more_of_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise no job can be submitted at all: its routing is recorded from `Celery.send_task`."""
    app: Any = make_app("memory://", None)
    recorded: list[str] = []
    producer: Any = type("Recorder", (), {"connection": celery_compat.offline_connection()})()
    producer.publish = lambda body, **options: recorded.append(options["headers"]["task"])
    app.send_task("tests.add", (1, 2), producer=producer)
    assert recorded == ["tests.add"]


def test_pydantic_arguments_are_dumped_as_celery_does() -> None:
    """Otherwise a pydantic model given to a job is refused: it is no JSON."""
    task: Any = make_app("memory://", None).tasks["tests.add"]
    assert celery_compat.dump_pydantic_arguments(task, [1], {"y": 2}) == ([1], {"y": 2})
    task._dump_pydantic_arguments = lambda args, kwargs: ([*args, "dumped"], kwargs)
    assert celery_compat.dump_pydantic_arguments(task, [1], {}) == ([1, "dumped"], {})
    assert hasattr(Task, "_dump_pydantic_arguments") == hasattr(Producer, "batch")  # Celery and kombu 5.7


def test_default_strategy_is_recognised() -> None:
    """Otherwise every task is refused as a job, or one is accepted that its worker would not claim."""
    app: Any = make_app("memory://", None)
    task = app.tasks["tests.add"]
    assert celery_compat.custom_strategy(task) is None
    task.Strategy = "celery_batches:strategy"
    assert "celery_batches:strategy" in str(celery_compat.custom_strategy(task))
