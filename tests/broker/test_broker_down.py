"""Publishing to a broker that is down, silent, or comes back."""

import socket
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from kombu import Connection

from jobhandle_celery import JobStatus
from jobhandle_celery.broker import publisher
from tests.broker.messages import ADD, REFUSING_BROKERS, Make, received
from tests.servers import RedisServer
from tests.support import a_soft_limit, sweep_until

pytestmark = pytest.mark.faults


def tries(caplog: pytest.LogCaptureFixture) -> int:
    """Return how often the log has "not reached"."""
    return sum("broker not reached" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("broker", REFUSING_BROKERS)
def test_refusing_broker_is_tried_once_and_raises_nothing(
    broker: str, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    app = make(REFUSING_BROKERS[broker])
    for _ in range(3):
        handle = app.jobs.handle()
        handle.submit(ADD)
        assert handle.job_status() is JobStatus.SUBMITTED
    app.jobs.submit_many([ADD] * 5)
    assert tries(caplog) == 1
    assert app.jobs.count_by_status()[JobStatus.SUBMITTED] == 8


@pytest.mark.parametrize("broker", REFUSING_BROKERS)
@pytest.mark.parametrize("fast", [True, False])
def test_failed_connect_for_a_batch_is_not_repeated(
    broker: str, fast: bool, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each try takes seconds, within which the sweep must not publish the same jobs."""
    connects: list[object] = []
    ensure = Connection.ensure_connection

    def counted(self: Connection, *args: Any, **options: Any) -> object:
        connects.append(self)
        return ensure(self, *args, **options)

    monkeypatch.setattr(Connection, "ensure_connection", counted)
    app = make(REFUSING_BROKERS[broker], jobhandle_fast_publish=fast)
    app.jobs.submit_many([ADD] * 3)
    assert len(connects) == tries(caplog) == 1
    assert app.jobs.count_by_status()[JobStatus.SUBMITTED] == 3


class BlackHole:
    """A server that accepts every connection, calls `on_connect` in a thread, and never answers."""

    def __init__(self, on_connect: Callable[[], object] = bool) -> None:
        self.connections: list[socket.socket] = []
        self._on_connect = on_connect
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
            self._on_connect()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for connection in self.connections:
            connection.close()


@pytest.mark.parametrize(
    "broker_url", ["redis://:password@127.0.0.1:{}/0", "redis://127.0.0.1:{}/0", "amqp://127.0.0.1:{}//"]
)
def test_silent_broker_is_tried_once_for_many_submits(
    broker_url: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobhandle_celery.broker.connection.BOUND", 0.2)
    with closing(BlackHole()) as hole:
        app = make(broker_url.format(hole.port))
        for _ in range(3):
            app.jobs.handle().submit(ADD)
        app.jobs.submit_many([ADD] * 5)
        assert len(hole.connections) == 1
    assert app.jobs.count_by_status()[JobStatus.SUBMITTED] == 8


@pytest.mark.parametrize("broker_url", ["redis://127.0.0.1:{}/0", "amqp://127.0.0.1:{}//"])
@pytest.mark.parametrize("count", [1, 5])
def test_time_limit_interrupts_submit_to_silent_broker(
    broker_url: str, count: int, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobhandle_celery.broker.connection.BOUND", 60)
    with a_soft_limit() as comes_in, closing(BlackHole(partial(comes_in, 0.3))) as hole:
        app = make(broker_url.format(hole.port))
        with pytest.raises(SoftTimeLimitExceeded):
            app.jobs.submit_many([ADD] * count)
        assert app.jobs.count_by_status()[JobStatus.SUBMITTED] == count


def test_sweep_publishes_jobs_when_the_broker_is_back(make: Make, private_redis: RedisServer) -> None:
    app = make(private_redis.url, jobhandle_publish_grace=0.1)
    private_redis.stop()
    ids = app.jobs.submit_many([ADD] * 3)
    assert app.jobs.count_by_status()[JobStatus.SUBMITTED] == 3
    # Another process, which has not found the broker down.
    sweeper = make(private_redis.url, jobhandle_publish_grace=0.1, task_default_queue="another")
    private_redis.start()
    sweep_until(sweeper.jobs, lambda: app.jobs.count_by_status()[JobStatus.QUEUED] == 3)
    assert sorted(message.headers["jobhandle"]["id"] for message in received(app)) == ids


def test_process_tries_again_after_its_pause(
    make: Make, private_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(publisher, "PAUSES", (0.2,))
    app = make(private_redis.url, jobhandle_publish_grace=0.1)
    private_redis.stop()
    handle = app.jobs.handle()
    handle.submit(ADD)
    sweep_until(app.jobs, lambda: tries(caplog) >= 2)
    private_redis.start()
    sweep_until(app.jobs, lambda: handle.job_status() is JobStatus.QUEUED)
    handle.submit(ADD)
    assert handle.job_status() is JobStatus.QUEUED


def test_connection_closed_by_broker_is_no_outage(
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


def test_plain_call_is_published_by_celery(make: Make, private_redis: RedisServer) -> None:
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


def test_submit_with_unusable_broker_url_keeps_the_job(make: Make) -> None:
    app = make("nosuch://host")
    handle = app.jobs.handle()
    handle.submit(ADD)
    assert handle.job_status() is JobStatus.SUBMITTED
    repaired = make(jobhandle_publish_grace=0.1)
    sweep_until(repaired.jobs, lambda: handle.job_status() is JobStatus.QUEUED)
