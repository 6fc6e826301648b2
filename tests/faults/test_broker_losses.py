"""A broker loses its messages (flushed, purged, restarted empty); no job is lost or runs twice."""

from collections.abc import Callable

import pytest

from jobhandle_celery import JobStatus
from tests.faults.brokers import PrivateBroker, PrivateRabbitmq, depth
from tests.faults.workload import BODIES, Workload
from tests.rng import scaled, stretched
from tests.servers import RabbitmqServer
from tests.support import eventually, sweep_until
from tests.worker.cluster import DEFAULT_QUEUE, NewCluster

pytestmark = [pytest.mark.faults, pytest.mark.timeout(stretched(900))]

TIMEOUT = 120
ASIDE = "aside"
"""A queue that no worker takes from, until a test says so."""
SETTINGS = {"jobhandle_republish_after": 2, "worker_prefetch_multiplier": 3}


def lose_messages(broker: PrivateBroker) -> None:
    broker.lose_messages()


def start_with_nothing(broker: PrivateBroker) -> None:
    broker.kill()
    broker.start_with_nothing()


@pytest.mark.parametrize("inject", [lose_messages, start_with_nothing])
def test_lost_messages_are_sent_again_and_run_once(
    new_cluster: NewCluster, private_broker: PrivateBroker, inject: Callable[[PrivateBroker], None]
) -> None:
    """Jobs in every stage: running (message acknowledged or not), reserved, Queued."""
    cluster = new_cluster(broker_url=private_broker.url, settings=SETTINGS)
    workload = Workload(cluster)
    cluster.start(BODIES, concurrency=2)
    sign = cluster.new_file()
    running = workload.submit([workload.job(task, str(sign)) for task in ("stay", "stay_late")])
    eventually(lambda: workload.count_started() == len(running), TIMEOUT)
    queued = workload.submit([workload.job("work", 0.02) for _ in range(scaled(20))])
    retrying = workload.submit([workload.job("again", 0, 1, 3, queue=ASIDE) for _ in range(scaled(3))])
    aside = workload.submit([workload.job("work_late", 0, queue=ASIDE) for _ in range(scaled(10))])
    # The worker has reserved its prefetch, and so takes no more.
    eventually(lambda: 0 < depth(cluster.app, DEFAULT_QUEUE) < len(queued), TIMEOUT)
    # A plain task's message, which is never republished.
    forgotten = cluster.new_file()
    cluster.call("plain", str(forgotten), queue=ASIDE)
    assert depth(cluster.app, ASIDE) == len(aside) + len(retrying) + 1
    assert {workload.handle(job_id).job_status() for job_id in running} == {JobStatus.RUNNING}
    inject(private_broker)
    sign.touch()
    # From both, since a Redis that dies may end Celery's worker, after its bodies.
    cluster.start(BODIES, queues=[ASIDE, DEFAULT_QUEUE])
    workload.wait_until_final(TIMEOUT)
    rows = workload.audit()
    assert not forgotten.exists(), "the broker has forgotten nothing"
    assert {rows[job_id].attempt for job_id in [*running, *queued, *aside]} == {1}
    assert {rows[job_id].attempt for job_id in retrying} == {2}
    assert {row.status for row in rows.values()} == {"Finished"}


def test_broker_that_forgets_repeatedly_loses_no_job(
    new_cluster: NewCluster, private_broker: PrivateBroker
) -> None:
    """Each time after all messages have been republished, while no worker runs."""
    cluster = new_cluster(broker_url=private_broker.url, settings={"jobhandle_republish_after": 0.5})
    workload = Workload(cluster)
    workload.submit_mixed(scaled(30), queue=ASIDE)
    for _ in range(3):
        sweep_until(cluster.jobs, lambda: depth(cluster.app, ASIDE) >= len(workload.ids), TIMEOUT)
        private_broker.lose_messages()
    cluster.start(BODIES, queues=[ASIDE])
    workload.wait_until_final(TIMEOUT)
    workload.audit()


def test_queues_deleted_under_their_worker_lose_no_job(
    new_cluster: NewCluster, private_rabbitmq: RabbitmqServer
) -> None:
    """As by an administrator: with their messages, and with the bindings that publishers have cached."""
    broker = PrivateRabbitmq(private_rabbitmq)
    cluster = new_cluster(
        broker_url=broker.url,
        settings=SETTINGS | {"task_default_exchange": "topics", "task_default_exchange_type": "topic"},
    )
    workload = Workload(cluster)
    cluster.start(BODIES, concurrency=2)
    workload.submit([workload.job("work_late", 2) for _ in range(2)])
    eventually(lambda: workload.count_started() == 2, TIMEOUT)
    workload.submit_mixed(scaled(20))
    workload.submit_mixed(scaled(5), queue=ASIDE)
    broker.delete_queues()
    workload.submit_mixed(scaled(20))
    cluster.start(BODIES, queues=[ASIDE])
    workload.wait_until_final(TIMEOUT)
    workload.audit()
