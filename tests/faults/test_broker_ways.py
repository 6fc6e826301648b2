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
from tests.worker.site import NewSite, Site

pytestmark = [pytest.mark.faults, pytest.mark.timeout(stretched(600))]

TIMEOUT = 90


def test_next_broker_of_a_list_is_tried(new_site: NewSite, broker_url: str) -> None:
    nobody_listens = "redis://127.0.0.1:1/0" if broker_url.startswith("redis") else "amqp://127.0.0.1:1//"
    site = new_site(broker_url=f"{nobody_listens};{broker_url}")
    workload = Workload(site)
    workload.submit([workload.job("work", 0) for _ in range(3)])
    assert {job.status for job in workload.rows().values()} == {JobStatus.QUEUED}
    site.start(BODIES)
    workload.submit_mixed(scaled(10))
    workload.wait_until_final(TIMEOUT)
    workload.audit()


def test_apps_own_transport_options_count(new_site: NewSite) -> None:
    options = {"global_keyprefix": "shop:", "sep": ":", "priority_steps": [0, 5]}
    site = new_site(settings={"broker_transport_options": options})
    workload = Workload(site)
    workload.submit([workload.job("work", 0, priority=priority) for priority in (0, 5)])
    assert {b"shop:celery", b"shop:celery:5"} <= set(site.redis.keys())
    site.start(BODIES)
    workload.submit_mixed(scaled(5))
    workload.wait_until_final(TIMEOUT)
    workload.audit()


# What the broker rejects.


def other_arguments(site: Site) -> JobHandle:
    """The queue exists, declared with other arguments."""
    with site.app.connection() as connection:
        Queue("otherwise", queue_arguments={"x-max-length": 7}, channel=connection.default_channel).declare()
    return site.submit("work", "", 0, queue="otherwise")


def full(site: Site) -> JobHandle:
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    site.app.amqp.queues.add(Queue("full", queue_arguments=arguments))
    for _ in range(10):
        site.call("plain", "", queue="full")
    # A classic queue takes one more than its length.
    handles = [site.submit("work", "", 0, queue="full") for _ in range(2)]
    return handles[-1]


def no_exchange(site: Site) -> JobHandle:
    return submit_with(site, exchange="nowhere", routing_key="any")


def submit_with(site: Site, **options: Any) -> JobHandle:
    handle = site.jobs.handle()
    handle.submit(site.app.signature("worker.work", ["", 0]).set(**options))
    return handle


def large_headers(site: Site) -> JobHandle:
    """RabbitMQ closes the connection: the headers do not fit into one frame."""
    return submit_with(site, headers={"large": "x" * 200_000})


def large_number(site: Site) -> JobHandle:
    """A number that JSON holds and an AMQP header does not."""
    return submit_with(site, headers={"large": 2**70})


def long_name(site: Site) -> JobHandle:
    """AMQP counts bytes."""
    return submit_with(site, queue="é" * 200)


def no_list(site: Site) -> JobHandle:
    """The queue's key holds something that is no list."""
    with redis.Redis.from_url(site.broker_url) as client:
        client.set("no list", "a text")
    return site.submit("work", "", 0, queue="no list")


REFUSALS: dict[str, list[Callable[[Site], JobHandle]]] = {
    "redis": [no_list],
    "rabbitmq": [other_arguments, full, no_exchange, large_headers, large_number, long_name],
}


@pytest.fixture(scope="module", params=REFUSALS)
def site(request: pytest.FixtureRequest, module_site: NewSite) -> Site:
    """A site with a worker, whose sweep publishes more and more messages that the broker rejects."""
    url = None
    if request.param == "rabbitmq":
        url = request.getfixturevalue("virtual_hosts").create()
    site = module_site(broker_url=url, settings={"jobhandle_republish_after": 2})
    site.start(BODIES)
    return site


@pytest.mark.parametrize(
    ("site", "refusal"),
    [(kind, refusal) for kind, refusals in REFUSALS.items() for refusal in refusals],
    indirect=["site"],
    scope="module",  # or each has a site of its own
)
def test_rejected_message_delays_no_other(site: Site, refusal: Callable[[Site], JobHandle]) -> None:
    """Neither the submits of the same process, nor the publishing by the sweep."""
    workload = Workload(site)
    refused = refusal(site)
    assert refused.job_status() is JobStatus.SUBMITTED
    [at_once] = workload.submit([workload.job("work", 0)])
    assert workload.handle(at_once).job_status() is not JobStatus.SUBMITTED
    workload.submit([workload.job("work", 0, scheduled_for=timedelta(seconds=1)) for _ in range(5)])
    workload.submit([workload.job("again", 0, 1, 1) for _ in range(5)])
    workload.wait_until_final(TIMEOUT)
    workload.audit()
    assert refused.job_status() is JobStatus.SUBMITTED
    assert any("rejected" in event.message for event in site.jobs.events(refused.job_id))
