"""A broker that forgets: flushed, purged, or back with nothing. No job is lost, and none runs twice."""

from collections.abc import Callable

import pytest

from jobhandle_celery import JobStatus
from tests.chance import scaled, stretched
from tests.faults.brokers import PrivateBroker, PrivateRabbitmq, depth
from tests.faults.crowd import BODIES, Crowd
from tests.servers import RabbitmqServer
from tests.support import eventually
from tests.worker.site import DEFAULT_QUEUE, NewSite

pytestmark = [pytest.mark.faults, pytest.mark.timeout(stretched(600))]

PATIENCE = 120
ASIDE = "aside"
"""A queue that no worker takes from, until a test says so."""
SETTINGS = {"jobhandle_republish_after": 2, "worker_prefetch_multiplier": 3}


def lose_messages(broker: PrivateBroker) -> None:
    broker.lose_messages()


def start_with_nothing(broker: PrivateBroker) -> None:
    broker.kill()
    broker.start_with_nothing()


@pytest.mark.parametrize("strike", [lose_messages, start_with_nothing])
def test_what_the_broker_has_forgotten_is_sent_again_and_runs_once(
    new_site: NewSite, private_broker: PrivateBroker, strike: Callable[[PrivateBroker], None]
) -> None:
    """Jobs in every stage: running with and without their message's acknowledgement, reserved, Queued."""
    site = new_site(broker_url=private_broker.url, settings=SETTINGS)
    crowd = Crowd(site)
    site.start(BODIES, concurrency=2)
    sign = site.new_file()
    running = crowd.submit([crowd.job(task, str(sign)) for task in ("stay", "stay_late")])
    eventually(lambda: crowd.number_begun() == len(running), PATIENCE)
    queued = crowd.submit([crowd.job("work", 0.02) for _ in range(scaled(20))])
    retrying = crowd.submit([crowd.job("again", 0, 1, 3, queue=ASIDE) for _ in range(scaled(3))])
    aside = crowd.submit([crowd.job("work_late", 0, queue=ASIDE) for _ in range(scaled(10))])
    # The worker has reserved some, and so takes no more.
    eventually(lambda: 0 < depth(site.app, DEFAULT_QUEUE) < len(queued), PATIENCE)
    # A plain task's message, which nobody sends again.
    forgotten = site.new_file()
    site.call("plain", str(forgotten), queue=ASIDE)
    assert depth(site.app, ASIDE) == len(aside) + len(retrying) + 1
    assert {crowd.handle(job_id).job_status() for job_id in running} == {JobStatus.RUNNING}
    strike(private_broker)
    sign.touch()
    # From both, since a Redis that dies may end Celery's worker, after its bodies.
    site.start(BODIES, queues=[ASIDE, DEFAULT_QUEUE])
    crowd.settle(PATIENCE)
    rows = crowd.audit()
    assert not forgotten.exists(), "the broker has forgotten nothing"
    assert {rows[job_id].attempt for job_id in [*running, *queued, *aside]} == {1}
    assert {rows[job_id].attempt for job_id in retrying} == {2}
    assert {row.status for row in rows.values()} == {"Finished"}


def test_a_broker_that_forgets_again_and_again_loses_nothing(
    new_site: NewSite, private_broker: PrivateBroker
) -> None:
    """Each time after all messages have been sent anew, while no worker is there to take them."""
    site = new_site(broker_url=private_broker.url, settings={"jobhandle_republish_after": 0.5})
    crowd = Crowd(site)
    crowd.submit_mixed(scaled(30), queue=ASIDE)
    for _ in range(3):
        eventually(lambda: site.jobs.sweep() and depth(site.app, ASIDE) >= len(crowd.ids), PATIENCE)
        private_broker.lose_messages()
    site.start(BODIES, queues=[ASIDE])
    crowd.settle(PATIENCE)
    crowd.audit()


def test_queues_that_are_deleted_under_their_worker_lose_nothing(
    new_site: NewSite, private_rabbitmq: RabbitmqServer
) -> None:
    """As by an administrator: with their messages, and with the bindings that publishers believe in."""
    broker = PrivateRabbitmq(private_rabbitmq)
    site = new_site(
        broker_url=broker.url,
        settings=SETTINGS | {"task_default_exchange": "topics", "task_default_exchange_type": "topic"},
    )
    crowd = Crowd(site)
    site.start(BODIES, concurrency=2)
    crowd.submit([crowd.job("work_late", 2) for _ in range(2)])
    eventually(lambda: crowd.number_begun() == 2, PATIENCE)
    crowd.submit_mixed(scaled(20))
    crowd.submit_mixed(scaled(5), queue=ASIDE)
    broker.delete_queues()
    crowd.submit_mixed(scaled(20))
    site.start(BODIES, queues=[ASIDE])
    crowd.settle(PATIENCE)
    crowd.audit()
