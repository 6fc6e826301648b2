"""A broker redelivers a message while its job runs: each body runs once.

Each test first makes sure of the redelivery, by the log of the workers.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta

import pytest

from tests.faults.brokers import PrivateRabbitmq
from tests.faults.workload import BODIES, Workload
from tests.rng import scaled, stretched
from tests.servers import RabbitmqServer
from tests.support import eventually
from tests.worker.cluster import NewCluster
from tests.workers import WorkerProcess

pytestmark = [pytest.mark.faults, pytest.mark.timeout(stretched(900))]

TIMEOUT = 120
IMPATIENT_REDIS = {
    "broker_transport_options": {
        "visibility_timeout": 3,
        # Without these two kombu looks only every hundred seconds.
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }
}


def received(workers: Sequence[WorkerProcess]) -> Counter[str]:
    """Return how often each task id was received."""
    return Counter(
        task_id for worker in workers for task_id in re.findall(r"\[([0-9a-f-]{36})\] received", worker.log)
    )


def task_ids(workload: Workload) -> dict[int, str]:
    return {job_id: str(job.task_id) for job_id, job in workload.rows().items()}


def test_bodies_beyond_the_visibility_timeout_run_once(new_cluster: NewCluster) -> None:
    cluster = new_cluster(settings=IMPATIENT_REDIS | {"worker_prefetch_multiplier": 4})
    workload = Workload(cluster)
    # One after the other, so that reserved messages also wait for longer than the timeout.
    workers = [cluster.start(BODIES, concurrency=2, ready=False) for _ in range(2)]
    for worker in workers:
        worker.wait_until_ready()
    long = workload.submit([workload.job("work_late", 10) for _ in range(2)])
    workload.submit([workload.job("work", 10) for _ in range(2)])
    workload.submit([workload.job(task, 1) for task in ("work", "work_late") * scaled(3)])
    workload.submit([workload.job("work", 0, scheduled_for=timedelta(seconds=8)) for _ in range(scaled(3))])
    workload.submit([workload.job("again", 0, 1, 6) for _ in range(scaled(3))])
    workload.wait_until_final(TIMEOUT)
    times = received(workers)
    assert all(times[task_ids(workload)[job_id]] > 1 for job_id in long), (
        "the broker has delivered nothing twice"
    )
    rows = workload.audit()
    assert {row.status for row in rows.values()} == {"Finished"}
    assert Counter(row.attempt for row in rows.values()) == {1: len(workload.ids) - scaled(3), 2: scaled(3)}


def test_bodies_whose_connection_is_cut_run_once(
    new_cluster: NewCluster, private_rabbitmq: RabbitmqServer
) -> None:
    """RabbitMQ requeues what a closed connection held; the same worker may receive it."""
    broker = PrivateRabbitmq(private_rabbitmq)
    cluster = new_cluster(broker_url=broker.url, settings={"worker_prefetch_multiplier": 4})
    workload = Workload(cluster)
    workers = [cluster.start(BODIES, concurrency=2, ready=False) for _ in range(2)]
    for worker in workers:
        worker.wait_until_ready()
    long = workload.submit([workload.job("work_late", 8) for _ in range(3)])
    eventually(lambda: workload.count_started() == len(long), TIMEOUT)
    workload.submit_mixed(scaled(20), 0.2)
    ids = task_ids(workload)

    def cut_until_delivered_again() -> bool:
        # The management plugin shows connections some seconds after they were made.
        broker.cut_connections()
        times = received(workers)
        return all(times[ids[job_id]] > 1 for job_id in long)

    eventually(cut_until_delivered_again, TIMEOUT)
    workload.wait_until_final(TIMEOUT)
    rows = workload.audit()
    assert {(rows[job_id].status, rows[job_id].attempt) for job_id in long} == {("Finished", 1)}


@pytest.fixture
def impatient_rabbitmq(private_rabbitmq: RabbitmqServer) -> Iterator[RabbitmqServer]:
    """A RabbitMQ with a consumer timeout of three seconds, not half an hour, checked every second."""
    private_rabbitmq.control("eval", _impatience(consumer_timeout=3_000, channel_tick_interval=1_000))
    yield private_rabbitmq
    private_rabbitmq.control("eval", _impatience(consumer_timeout=1_800_000, channel_tick_interval=60_000))


def _impatience(**settings: int) -> str:
    details = (f"application:set_env(rabbit, {name}, {value})" for name, value in settings.items())
    return ", ".join(details) + "."


def test_acknowledgement_timeout_starts_no_second_body(
    new_cluster: NewCluster, impatient_rabbitmq: RabbitmqServer
) -> None:
    """RabbitMQ closes the channel; Celery's worker then ends, after its bodies."""
    cluster = new_cluster(broker_url=impatient_rabbitmq.url)
    workload = Workload(cluster)
    first = cluster.start(BODIES)
    workload.submit([workload.job("work_late", 8) for _ in range(2)])
    eventually(lambda: workload.count_started() == len(workload.ids), TIMEOUT)
    second = cluster.start(BODIES)
    ids = task_ids(workload).values()
    eventually(lambda: all(received([first, second])[task_id] > 1 for task_id in ids), TIMEOUT)
    workload.wait_until_final(TIMEOUT)
    rows = workload.audit()
    assert {(row.status, row.attempt, row.worker) for row in rows.values()} == {
        ("Finished", 1, first.nodename)
    }
