"""How many connections to the broker a process opens and keeps for its threads, and its name in the log."""

import gc
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import redis
from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery, signals

from jobhandle_celery import Job, JobStatus
from jobhandle_celery.broker import connection_pool
from jobhandle_celery.broker.connection import BrokerConnection, broker_name
from jobhandle_celery.broker.connection_pool import ConnectionPool, PoolExhausted
from tests.broker.messages import ADD, Make, received
from tests.support import eventually, is_true_in_a_child, sweep_until

LIMIT = 3


class Broker:
    """Redis, and its connections by one client name."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url, decode_responses=True)
        self.name = f"test-{uuid.uuid4().hex}"

    def ids(self) -> set[str]:
        """The ids of the open connections; a new one has a new id."""
        return {client["id"] for client in self._client.client_list() if client["name"] == self.name}

    def open(self) -> int:
        return len(self.ids())


@pytest.fixture
def broker(redis_url: str) -> Broker:
    return Broker(redis_url)


@pytest.fixture
def app(make: Make, redis_url: str, broker: Broker) -> Any:
    options = {"client_name": broker.name}
    return make(redis_url, broker_pool_limit=LIMIT, broker_transport_options=options)


def in_threads(count: int, work: Callable[[], object], at_once: int) -> None:
    """Do the work `count` times, each in a thread of its own, `at_once` of them at a time."""
    slots = threading.Semaphore(at_once)

    def slot() -> None:
        with slots:
            work()

    threads = [threading.Thread(target=slot) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def submit(app: Any) -> None:
    with app.jobs.handle() as handle:
        handle.submit(ADD)


@pytest.mark.parametrize("at_once", [1, 30])
def test_threads_share_a_pool_of_connections(app: Any, broker: Broker, at_once: int) -> None:
    """A thread for each request does not mean a connection for each (fault 21)."""
    submit(app)
    in_threads(60, lambda: submit(app), at_once)
    per_connection = 2  # kombu's Redis channel has one to publish and one to consume
    assert 0 < broker.open() <= per_connection * (1 if at_once == 1 else LIMIT)
    assert app.jobs.count_by_status()[JobStatus.QUEUED] == 61 == len(received(app))
    app.jobs.close()
    eventually(lambda: broker.open() == 0, message="close() closes all")
    submit(app)
    assert broker.open() <= per_connection


def test_no_connection_is_kept_without_pool_limit(make: Make, redis_url: str, broker: Broker) -> None:
    """As with Celery's own publishers (fault 21)."""
    app = make(redis_url, broker_pool_limit=None, broker_transport_options={"client_name": broker.name})
    in_threads(5, lambda: submit(app), 5)
    assert broker.open() == 0
    assert app.jobs.count_by_status()[JobStatus.QUEUED] == 5


@pytest.fixture
def pool(make: Make) -> ConnectionPool:
    return ConnectionPool(make(broker_pool_limit=LIMIT))


def in_a_thread(work: Callable[[], object]) -> list[object]:
    """Do the work in a thread; return its result or error."""
    outcome: list[object] = []

    def worker() -> None:
        try:
            outcome.append(work())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=worker)
    thread.start()
    thread.join()
    return outcome


def borrow(pool: ConnectionPool) -> BrokerConnection:
    with pool.acquire() as connection:
        return connection


@contextmanager
def all_in_use(pool: ConnectionPool) -> Iterator[list[BrokerConnection]]:
    """Have other threads hold all connections of a pool."""
    over, lent = threading.Event(), threading.Semaphore(0)
    held: list[BrokerConnection] = []

    def hold() -> None:
        with pool.acquire() as connection:
            held.append(connection)
            lent.release()
            over.wait()

    threads = [threading.Thread(target=hold) for _ in range(LIMIT)]
    for thread in threads:
        thread.start()
        lent.acquire()
    yield held
    over.set()
    for thread in threads:
        thread.join()


def test_wait_for_a_connection_is_bounded(pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait for an exhausted pool is bounded (fault 21)."""
    monkeypatch.setattr(connection_pool, "BOUND", 0.05)
    with all_in_use(pool):
        (error,) = in_a_thread(lambda: borrow(pool))
        assert isinstance(error, PoolExhausted)
    with ExitStack() as stack:
        assert len({id(stack.enter_context(pool.acquire())) for _ in range(LIMIT)}) == LIMIT


def test_released_connection_goes_to_waiting_thread(pool: ConnectionPool) -> None:
    with all_in_use(pool) as held:
        waiting = threading.Thread(target=lambda: held.append(borrow(pool)))
        waiting.start()
        eventually(lambda: pool._changed._waiters, message="it waits")  # type: ignore[attr-defined]
    waiting.join()
    assert held[-1] in held[:-1]


def test_job_without_free_connection_is_left_to_the_sweep(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exhausted pool is not taken for a broker that is down (fault 21)."""
    monkeypatch.setattr(connection_pool, "BOUND", 0.05)
    app = make(broker_pool_limit=LIMIT, jobhandle_publish_grace=0.1)
    publisher = app.jobs._runtime.publisher
    with all_in_use(publisher._pool):
        submit(app)
        assert app.jobs.count_by_status()[JobStatus.SUBMITTED] == 1
        assert publisher.reachable
    sweep_until(app.jobs, lambda: app.jobs.count_by_status()[JobStatus.QUEUED] == 1)


def test_signal_receiver_may_submit_while_publishing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread does not wait for the connection that it holds itself (fault 21)."""
    monkeypatch.setattr(connection_pool, "BOUND", 60)
    app = make(broker_pool_limit=1)
    nested: list[bool] = []

    def receiver(**_: Any) -> None:
        if not nested:
            nested.append(True)
            app.jobs.handle().submit(Job(task="tests.add", args=[3, 4]))

    signals.before_task_publish.connect(receiver)
    try:
        submit(app)
    finally:
        signals.before_task_publish.disconnect(receiver)
    assert app.jobs.count_by_status()[JobStatus.QUEUED] == 2
    assert len(pool_of(app)._idle) == 1


def pool_of(app: Any) -> ConnectionPool:
    pool: ConnectionPool = app.jobs._runtime.publisher._pool
    return pool


def test_connection_in_use_during_close_is_closed_on_release(pool: ConnectionPool) -> None:
    with pool.acquire() as connection:
        pool.close()
    assert borrow(pool) is not connection


def test_connection_of_interrupted_publish_is_closed(pool: ConnectionPool) -> None:
    def interrupted() -> None:
        with pool.acquire() as connection:
            connection._producer = object()
            raise SoftTimeLimitExceeded

    connection = borrow(pool)
    with pytest.raises(SoftTimeLimitExceeded):
        interrupted()
    assert connection._producer is None
    assert borrow(pool) is connection


def test_lost_connection_frees_its_place(pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time limit between two instructions cannot exhaust the pool (fault 21)."""
    monkeypatch.setattr(connection_pool, "BOUND", 0.05)
    for _ in range(LIMIT):
        pool._acquire(beyond_the_limit=False)
    gc.collect()
    borrow(pool)


def test_forked_child_opens_its_own_connections(app: Any, broker: Broker) -> None:
    """It does not close its parent's, also when it ends (fault 21)."""

    def opens_its_own() -> bool:
        submit(app)
        return borrow(pool) is not held and held not in pool._idle

    submit(app)
    pool = pool_of(app)
    with pool.acquire() as held:
        assert is_true_in_a_child(opens_its_own)
    before = broker.ids()
    submit(app)
    assert broker.ids() == before != set()
    assert len(received(app)) == 3


def test_each_app_has_its_own_pool(make: Make) -> None:
    first, second = make(), make()
    submit(first)
    submit(second)
    assert pool_of(first) is not pool_of(second)
    assert not set(pool_of(first)._idle) & set(pool_of(second)._idle)


def test_templates_are_built_once_for_all_threads(app: Any) -> None:
    """Templates, which are slow to build, are built once per process (fault 21)."""
    in_threads(10, lambda: submit(app), 1)
    builder = app.jobs._runtime.publisher._builder
    assert len(builder._templates) == 1
    (connection,) = pool_of(app)._idle
    transport: Any = connection.transport
    assert [template for template, _ in transport._templates._recorded] == list(builder._templates.values())


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://ann:secret@broker:7000/0", "redis at broker:7000"),
        ("amqp://ann:secret@broker/shop", "amqp at broker"),
        ("redis+socket://:secret@/run/redis.sock", "redis"),
        ("memory://", "memory"),
    ],
)
def test_name_of_the_broker_in_the_log_has_no_password(url: str, shown: str) -> None:
    assert broker_name(Celery(broker=url, set_as_current=False)) == shown
