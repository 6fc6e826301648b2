"""A broker fails every few seconds, at random moments, with jobs in all states."""

from collections.abc import Callable, Sequence

import pytest

from tests.faults.brokers import PrivateBroker
from tests.faults.rounds import ALL_WAYS, account_for_rounds
from tests.faults.workload import BODIES, WorkerSupervisor, Workload, hold, inject_in_each_way
from tests.rng import stretched
from tests.servers import execute
from tests.support import eventually
from tests.worker.cluster import NewCluster

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(stretched(900))]

STRIKES = 5
CALM = (0.5, 3.0)
"""Seconds from one strike to the next."""


def strikes_at(broker: PrivateBroker, hold: Callable[[], None]) -> Sequence[Callable[[], None]]:
    """Return the faults; each leaves the broker running."""

    def restart() -> None:
        broker.kill()
        hold()
        broker.start()

    def restart_with_nothing() -> None:
        broker.kill()
        hold()
        broker.start_with_nothing()

    def silence() -> None:
        broker.pause()
        hold()
        broker.resume()

    def lose_messages_twice() -> None:
        broker.lose_messages()
        hold()
        broker.lose_messages()

    return [restart, restart_with_nothing, silence, lose_messages_twice, broker.cut_connections]


@pytest.mark.parametrize(
    ("private_broker", "database_url"),
    [("redis", "postgresql"), ("rabbitmq", "mariadb")],
    indirect=True,
)
def test_repeated_broker_faults_lose_and_repeat_no_job(
    new_cluster: NewCluster, private_broker: PrivateBroker, database_url: str
) -> None:
    cluster = new_cluster(
        database_url=database_url,
        broker_url=private_broker.url,
        settings={
            "jobhandle_republish_after": 2,
            "worker_prefetch_multiplier": 4,
            "broker_heartbeat": 4,
            "broker_transport_options": {
                "visibility_timeout": 4,
                "unacked_restore_interval": 1,
                "unacked_restore_throttle": 1,
            },
        },
    )
    workload = Workload(cluster)
    workload.submit_in_all_states(0.1)  # so that the first strike has something to take
    supervisor = WorkerSupervisor(lambda: cluster.start(BODIES, ready=False), 2)
    times = strikes_at(private_broker, lambda: hold(workload.rng.uniform(0.2, 2)))

    def meanwhile() -> None:
        workload.act_at_random()
        tend(supervisor)

    inject_in_each_way(times, STRIKES, CALM, workload.rng, meanwhile)

    def settled() -> bool:
        tend(supervisor)
        return not workload.unfinished()

    for job_id in workload.held():
        workload.release(job_id)
    eventually(settled, 240)
    ways = account_for_rounds(workload, workload.audit(lost_before_body=True))
    print(len(workload.ids), "jobs:", dict(ways))
    assert set(ways) == ALL_WAYS
    sent_again = "SELECT count(*) FROM jobhandle_job WHERE publish_count > 1"
    assert execute(database_url, sent_again)[0][0] > 0, "the storm took no message"


def tend(supervisor: WorkerSupervisor) -> None:
    """Start a worker in the place of one that has ended: Celery's do when a Redis dies that has messages."""
    for worker in list(supervisor.workers):
        if not worker.is_running():
            supervisor.replace(worker)
