"""An internal error is logged as such, never as an outage, and jobs are published all the same."""

import inspect
import logging
import re
import sys
import types
import uuid
from typing import Any

import kombu.transport.redis
import pytest
from kombu import Queue

from jobhandle_celery import Job, JobStatus, celery_compat, internal_errors
from jobhandle_celery.broker import kombu_transport, redis_transport
from tests.broker.messages import ADD, Make, received
from tests.bugs import blames_the_broker, bug, logged_bugs, submit_three_times


@pytest.fixture(autouse=True)
def _nothing_logged_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internal_errors, "_logged", set())


@pytest.fixture(params=["_create_client", "conn_or_acquire"])
def renamed_kombu_method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Rename a private method in a copy of kombu's Redis transport, as a later release may."""
    name: str = request.param
    module = types.ModuleType(f"kombu_redis_{uuid.uuid4().hex}")
    module.__package__ = "kombu.transport"
    source = inspect.getsource(kombu.transport.redis)
    exec(compile(re.sub(rf"\b{name}\b", "_another_name", source), module.__name__, "exec"), vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(kombu.transport.TRANSPORT_ALIASES, "redis", f"{module.__name__}:Transport")
    monkeypatch.setattr(kombu.transport, "_transport_cache", {})
    return name


@pytest.mark.usefixtures("renamed_kombu_method")
def test_renamed_kombu_method_leaves_messages_to_kombu(
    make: Make, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The error is logged once, with its traceback (fault 25)."""
    app = make(redis_url)
    count = submit_three_times(app)
    assert app.jobs.count_by_status()[JobStatus.QUEUED] == count == len(received(app))
    (record,) = logged_bugs(caplog)
    assert record.exc_info
    assert "published by kombu alone" in record.getMessage()
    assert not blames_the_broker(caplog)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (redis_transport.RedisTransport, "__init__"),
        (redis_transport.RedisTransport, "push"),
        (redis_transport.RedisTransport, "_record"),
        (redis_transport.LpushTemplate, "of"),
        (redis_transport.LpushTemplate, "render"),
    ],
)
def test_bug_in_redis_transport_leaves_messages_to_kombu(
    owner: type, name: str, make: Make, redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """A bug in a fast transport costs speed alone (fault 25)."""
    monkeypatch.setattr(owner, name, bug)
    app = make(redis_url)
    count = submit_three_times(app)
    assert app.jobs.count_by_status()[JobStatus.QUEUED] == count == len(received(app))
    assert len(logged_bugs(caplog)) == 1
    assert not blames_the_broker(caplog)


def test_without_fast_publish_no_fast_transport_is_used(
    make: Make, redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(redis_transport.RedisTransport, "__init__", bug)
    app = make(redis_url, jobhandle_fast_publish=False)
    assert submit_three_times(app) == len(received(app))
    assert logged_bugs(caplog) == []


@pytest.mark.parametrize("error", [TypeError, AttributeError, KeyError, RuntimeError])
@pytest.mark.parametrize("count", [1, 3])
def test_bug_in_kombu_transport_is_no_outage(
    count: int, error: type[Exception], make: Make, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Jobs stay Submitted, later ones are tried, and the bug is logged once (fault 25)."""

    def fail(*_: Any, **__: Any) -> None:
        raise error("a bug")

    app = make()
    with monkeypatch.context() as patch:
        patch.setattr(kombu_transport.KombuTransport, "publish", fail)
        app.jobs.submit_many([ADD] * count)
        (record,) = logged_bugs(caplog)
        assert record.exc_info
        assert record.levelno == logging.ERROR
        assert not blames_the_broker(caplog)
        assert app.jobs.count_by_status()[JobStatus.SUBMITTED] == count
    handle = app.jobs.handle()
    handle.submit(ADD)
    assert handle.job_status() is JobStatus.QUEUED


@pytest.mark.parametrize("count", [1, 3])
def test_key_error_in_kombu_redis_transport_is_no_outage(
    count: int, make: Make, redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """kombu 5.7 lists KeyError among Redis' connection errors, and wraps it."""

    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("a bug")

    app = make(redis_url, jobhandle_fast_publish=False)
    with monkeypatch.context() as patch:
        patch.setattr(kombu.transport.redis.Channel, "_put", fail)
        app.jobs.submit_many([ADD] * count)
    assert len(logged_bugs(caplog)) == 1
    assert not blames_the_broker(caplog)
    handle = app.jobs.handle()
    handle.submit(ADD)
    assert handle.job_status() is JobStatus.QUEUED


def test_nack_in_batch_concerns_its_message_alone(
    make: Make, rabbitmq_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """RabbitMQ nacks a message for a full queue: that is no bug, and fast publishing stays on."""
    app = make(rabbitmq_url)
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    app.amqp.queues.add(Queue("full", queue_arguments=full))
    for _ in range(3):
        app.jobs.submit(Job(task="tests.add", args=[1, 2], queue="full"))  # it takes one or two
    before = internal_errors.counted()
    caplog.clear()
    ids = app.jobs.submit_many([ADD, Job(task="tests.add", args=[1, 2], queue="full"), ADD])
    assert internal_errors.counted() == before
    assert logged_bugs(caplog) == []
    statuses = {job.id: job.status for job in app.jobs.find(ids=ids)}
    assert [statuses[job_id] for job_id in ids] == ["Queued", "Submitted", "Queued"]
    with app.jobs._runtime.publisher._pool.acquire() as connection:
        assert connection._fast


def test_bug_in_kombu_batch_is_reported_once(
    make: Make, redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Then each message is sent by itself (fault 25)."""
    monkeypatch.setattr(celery_compat, "supports_batches", lambda _: True)
    monkeypatch.setattr(celery_compat, "batch", bug)
    app = make(redis_url, jobhandle_fast_publish=False)
    before = internal_errors.counted()["count"]
    app.jobs.submit_many([ADD] * 3)
    app.jobs.submit_many([ADD] * 3)
    assert app.jobs.count_by_status()[JobStatus.QUEUED] == 6
    (record,) = logged_bugs(caplog)
    assert "one by one" in record.getMessage()
    assert internal_errors.counted()["count"] == before + 2
