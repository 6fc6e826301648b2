"""Every call to a broker that accepts connections and stays silent ends by a deadline of ours (fault 45)."""

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from jobhandle_celery import Job, celery_compat
from tests.apps import make_app
from tests.bugs import logged_bugs
from tests.faults.broker_gate import Gate
from tests.rng import stretched

pytestmark = pytest.mark.faults

DEADLINE = stretched(30)
"""Seconds. Unbounded, a call would take longer than any test."""


class Cluster:
    """An app whose connections to the broker pass a gate."""

    def __init__(self, gate: Gate, sqlite_url: str) -> None:
        self.gate = gate
        self.queue = f"queue-{uuid.uuid4().hex}"
        app: Any = make_app(gate.url, sqlite_url, {"task_default_queue": self.queue})
        self.app = app
        self.publisher: Any = app.jobs._runtime.publisher

    def submit(self, count: int, queue: str | None = None) -> None:
        self.publisher._retry_at = 0
        self.app.jobs.submit_many([Job(task="tests.add", args=[1, 2], queue=queue)] * count)

    def depth(self) -> None:
        self.publisher._retry_at = 0
        self.publisher.depth(self.queue)

    def send_events(self) -> None:
        with self.publisher._pool.acquire() as connection, suppress(*connection.errors):
            connection.send_events("worker@host", [("task-sent", {"uuid": "1"})])

    def close(self) -> None:
        self.publisher.close()


CALLS: dict[str, Callable[[Cluster], object]] = {
    "publish a message": lambda cluster: cluster.submit(1),
    "publish a batch": lambda cluster: cluster.submit(3),
    "declare a queue": lambda cluster: cluster.submit(1, f"{cluster.queue}-new"),
    "ask for the depth of a queue": Cluster.depth,
    "send events": Cluster.send_events,
    "close": Cluster.close,
}


@pytest.fixture
def cluster(broker_url: str, sqlite_url: str) -> Iterator[Cluster]:
    with Gate(broker_url) as gate:
        cluster = Cluster(gate, sqlite_url)
        yield cluster
        gate.cut_all()
        cluster.app.jobs.close()


def ends(call: Callable[[], object]) -> bool:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    return not thread.is_alive()


@pytest.mark.parametrize("call", CALLS)
def test_call_on_new_connection_to_silent_broker_ends(call: str, cluster: Cluster) -> None:
    with cluster.gate.shut():
        assert ends(lambda: CALLS[call](cluster))


@pytest.mark.parametrize("call", CALLS)
def test_call_on_used_connection_to_silent_broker_ends(call: str, cluster: Cluster, caplog: Any) -> None:
    for _ in range(2):
        cluster.submit(3)
    cluster.gate.swallow()
    assert ends(lambda: CALLS[call](cluster))
    assert logged_bugs(caplog) == []


def test_close_of_many_silent_connections_waits_for_one_answer(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many connections as there are threads; RabbitMQ alone has a handshake."""
    pool = cluster.publisher._pool
    with ExitStack() as stack:
        connections = [stack.enter_context(pool.acquire()) for _ in range(10)]
        for connection in connections:
            connection.depth(cluster.queue)
    cluster.gate.swallow()
    handshakes: list[Any] = []
    disconnect = celery_compat.disconnect

    def counted(connection: Any, *, handshake: bool) -> None:
        handshakes.extend([connection] * handshake)
        disconnect(connection, handshake=handshake)

    monkeypatch.setattr(celery_compat, "disconnect", counted)
    assert ends(cluster.close)
    rabbitmq = cluster.gate.url.startswith("amqp")
    assert len(handshakes) == (1 if rabbitmq else len(connections))
