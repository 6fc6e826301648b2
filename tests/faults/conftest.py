"""Clusters of the fault tests, as those of `tests/worker`; and brokers that a test may break."""

from collections.abc import Iterator

import pytest
import redis

from tests.faults.brokers import PrivateBroker, PrivateRabbitmq, PrivateRedis
from tests.faults.tree_process import TreeProcess
from tests.reaper import Reaper
from tests.servers import RabbitmqServer, RedisServer, absent, own_rabbitmq
from tests.store.harness import Harness
from tests.worker.conftest import module_cluster, new_cluster

__all__ = ["module_cluster", "new_cluster"]

BROKERS = ["redis", "rabbitmq"]


@pytest.fixture(scope="session")
def rabbitmq_to_hurt(reaper: Reaper) -> Iterator[RabbitmqServer]:
    """One for all tests of this process that break one: its start costs four seconds of CPU."""
    server = absent.started("rabbitmq", own_rabbitmq, reaper)
    yield server
    server.discard()


@pytest.fixture
def private_rabbitmq(rabbitmq_to_hurt: RabbitmqServer) -> RabbitmqServer:
    """A running RabbitMQ without queues, that this test may kill, pause, reset and start again."""
    rabbitmq_to_hurt.resume()
    if not rabbitmq_to_hurt.answers():
        rabbitmq_to_hurt.kill()
        rabbitmq_to_hurt.forget()
        rabbitmq_to_hurt.start()
    PrivateRabbitmq(rabbitmq_to_hurt).delete_queues()
    return rabbitmq_to_hurt


@pytest.fixture
def tree_process(database_url: str) -> Iterator[TreeProcess]:
    """A process that runs members of trees, on each database in turn."""
    harness = Harness(database_url)
    yield TreeProcess(harness)
    harness.close()


@pytest.fixture(params=BROKERS)
def broker_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty place on a broker, of each kind in turn, emptied after the test."""
    fixture = {"redis": "second_redis_url", "rabbitmq": "rabbitmq_url"}[request.param]
    url: str = request.getfixturevalue(fixture)
    yield url
    if request.param == "redis":
        with redis.Redis.from_url(url) as client:
            client.flushdb()


@pytest.fixture(params=BROKERS)
def private_broker(request: pytest.FixtureRequest) -> PrivateBroker:
    """A broker for this test alone, which it may break, of each kind in turn."""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("private_redis")
        return PrivateRedis(server)
    node: RabbitmqServer = request.getfixturevalue("private_rabbitmq")
    return PrivateRabbitmq(node)
