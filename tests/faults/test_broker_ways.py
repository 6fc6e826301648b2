"""Publishing a message: the app's broker settings, and what the broker rejects."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import redis
from kombu import Queue

from jobhandle_celery import JobHandle, JobStatus
from tests.faults.workload import BODIES, Workload
from tests.rng import scaled, stretched
from tests.worker.cluster import Cluster, NewCluster

pytestmark = [pytest.mark.faults, pytest.mark.timeout(stretched(900))]

TIMEOUT = 90


def test_next_broker_of_a_list_is_tried(new_cluster: NewCluster, broker_url: str) -> None:
    nobody_listens = "redis://127.0.0.1:1/0" if broker_url.startswith("redis") else "amqp://127.0.0.1:1//"
    cluster = new_cluster(broker_url=f"{nobody_listens};{broker_url}")
    workload = Workload(cluster)
    workload.submit([workload.job("work", 0) for _ in range(3)])
    assert {job.status for job in workload.rows().values()} == {JobStatus.QUEUED}
    cluster.start(BODIES)
    workload.submit_mixed(scaled(10))
    workload.wait_until_final(TIMEOUT)
    workload.audit()


def test_apps_own_transport_options_count(new_cluster: NewCluster) -> None:
    options = {"global_keyprefix": "shop:", "sep": ":", "priority_steps": [0, 5]}
    cluster = new_cluster(settings={"broker_transport_options": options})
    workload = Workload(cluster)
    workload.submit([workload.job("work", 0, priority=priority) for priority in (0, 5)])
    assert {b"shop:celery", b"shop:celery:5"} <= set(cluster.redis.keys())
    cluster.start(BODIES)
    workload.submit_mixed(scaled(5))
    workload.wait_until_final(TIMEOUT)
    workload.audit()


# What the broker rejects.


def other_arguments(cluster: Cluster) -> JobHandle:
    """The queue exists, declared with other arguments."""
    with cluster.app.connection() as connection:
        Queue("otherwise", queue_arguments={"x-max-length": 7}, channel=connection.default_channel).declare()
    return cluster.submit("work", "", 0, queue="otherwise")


def full(cluster: Cluster) -> JobHandle:
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    cluster.app.amqp.queues.add(Queue("full", queue_arguments=arguments))
    for _ in range(10):
        cluster.call("plain", "", queue="full")
    # A classic queue takes one more than its length.
    handles = [cluster.submit("work", "", 0, queue="full") for _ in range(2)]
    return handles[-1]


def no_exchange(cluster: Cluster) -> JobHandle:
    return submit_with(cluster, exchange="nowhere", routing_key="any")


def submit_with(cluster: Cluster, **options: Any) -> JobHandle:
    handle = cluster.jobs.handle()
    handle.submit(cluster.app.signature("worker.work", ["", 0]).set(**options))
    return handle


def large_headers(cluster: Cluster) -> JobHandle:
    """RabbitMQ closes the connection: the headers do not fit into one frame."""
    return submit_with(cluster, headers={"large": "x" * 200_000})


def large_number(cluster: Cluster) -> JobHandle:
    """A number that JSON holds and an AMQP header does not."""
    return submit_with(cluster, headers={"large": 2**70})


def long_name(cluster: Cluster) -> JobHandle:
    """AMQP counts bytes."""
    return submit_with(cluster, queue="é" * 200)


def no_list(cluster: Cluster) -> JobHandle:
    """The queue's key holds something that is no list."""
    with redis.Redis.from_url(cluster.broker_url) as client:
        client.set("no list", "a text")
    return cluster.submit("work", "", 0, queue="no list")


REFUSALS: dict[str, list[Callable[[Cluster], JobHandle]]] = {
    "redis": [no_list],
    "rabbitmq": [other_arguments, full, no_exchange, large_headers, large_number, long_name],
}


@pytest.fixture(scope="module", params=REFUSALS)
def cluster(request: pytest.FixtureRequest, module_cluster: NewCluster) -> Cluster:
    """A cluster with a worker, whose sweep publishes more and more messages that the broker rejects."""
    url = None
    if request.param == "rabbitmq":
        url = request.getfixturevalue("virtual_hosts").create()
    cluster = module_cluster(broker_url=url, settings={"jobhandle_republish_after": 2})
    cluster.start(BODIES)
    return cluster


@pytest.mark.parametrize(
    ("cluster", "refusal"),
    [(kind, refusal) for kind, refusals in REFUSALS.items() for refusal in refusals],
    indirect=["cluster"],
    scope="module",  # or each has a cluster of its own
)
def test_rejected_message_delays_no_other(cluster: Cluster, refusal: Callable[[Cluster], JobHandle]) -> None:
    """Neither the submits of the same process, nor the publishing by the sweep."""
    workload = Workload(cluster)
    refused = refusal(cluster)
    assert refused.job_status() is JobStatus.SUBMITTED
    [at_once] = workload.submit([workload.job("work", 0)])
    assert workload.handle(at_once).job_status() is not JobStatus.SUBMITTED
    workload.submit([workload.job("work", 0, scheduled_for=timedelta(seconds=1)) for _ in range(5)])
    workload.submit([workload.job("again", 0, 1, 1) for _ in range(5)])
    workload.wait_until_final(TIMEOUT)
    workload.audit()
    assert refused.job_status() is JobStatus.SUBMITTED
    assert any("rejected" in event.message for event in cluster.jobs.events(refused.job_id))
