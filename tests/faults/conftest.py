"""Crowds for the fault tests, on sites as those of the tests with real workers; and brokers to hurt."""

import os
from collections.abc import Iterator

import pytest

from tests.conftest import _started
from tests.faults.brokers import PrivateBroker, PrivateRabbitmq, PrivateRedis, VirtualHosts
from tests.reaper import Reaper
from tests.servers import Management, RabbitmqServer, RedisServer, own_rabbitmq
from tests.worker.conftest import module_site, new_site, second_redis_url

__all__ = ["module_site", "new_site", "second_redis_url"]

BROKERS = ["redis", "rabbitmq"]


@pytest.fixture(scope="session")
def virtual_hosts(reaper: Reaper) -> Iterator[VirtualHosts]:
    """A RabbitMQ for this process of the test run: our own, or `JOBHANDLE_TEST_RABBITMQ_URL`.

    In a given one nothing is touched but virtual hosts that the tests made, through its management plugin,
    at `JOBHANDLE_TEST_RABBITMQ_MANAGEMENT_URL`, or at port 15672.
    """
    given = os.environ.get("JOBHANDLE_TEST_RABBITMQ_URL")
    if given:
        elsewhere = os.environ.get("JOBHANDLE_TEST_RABBITMQ_MANAGEMENT_URL")
        hosts = VirtualHosts(given, Management.of(given, elsewhere))
        yield hosts
        hosts.remove()
        return
    server = _started("rabbitmq", own_rabbitmq, reaper)
    yield VirtualHosts(server.url, server.management)
    server.discard()


@pytest.fixture
def rabbitmq_url(virtual_hosts: VirtualHosts) -> str:
    """An empty virtual host of a RabbitMQ."""
    return virtual_hosts.create()


@pytest.fixture(scope="session")
def rabbitmq_to_hurt(reaper: Reaper) -> Iterator[RabbitmqServer]:
    """One for all tests of this process that hurt one: its start costs four seconds of a processor."""
    server = _started("rabbitmq", own_rabbitmq, reaper)
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


@pytest.fixture(params=BROKERS)
def broker_url(request: pytest.FixtureRequest) -> str:
    """An empty place on a broker, of each kind in turn."""
    fixture = {"redis": "second_redis_url", "rabbitmq": "rabbitmq_url"}[request.param]
    url: str = request.getfixturevalue(fixture)
    return url


@pytest.fixture(params=BROKERS)
def private_broker(request: pytest.FixtureRequest) -> PrivateBroker:
    """A broker for this test alone, that it may hurt, of each kind in turn."""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("private_redis")
        return PrivateRedis(server)
    node: RabbitmqServer = request.getfixturevalue("private_rabbitmq")
    return PrivateRabbitmq(node)
