"""A backlog that waits for several republish delays loses no job and does not flood the broker."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import Engine, create_engine, func, select

from jobhandle_celery import Jobs, JobStatus, submitter
from jobhandle_celery.broker.connection import BrokerConnection
from jobhandle_celery.schema import job
from jobhandle_celery.status import UNFINISHED
from tests.faults.brokers import PrivateBroker, depth, lying_in
from tests.faults.workload import BODIES, Workload
from tests.rng import SCALE, scaled, stretched
from tests.support import eventually, sweep_until
from tests.worker.cluster import Cluster, NewCluster

pytestmark = [pytest.mark.faults, pytest.mark.timeout(stretched(900))]

BACKLOG = {"redis": 500, "rabbitmq": 100}
AT_A_TIME = 100
"""Few enough to be published within the publish grace."""
STANDS = "standing"
"""The queue of the backlog."""


@contextmanager
def rows(cluster: Cluster) -> Iterator[Engine]:
    engine = create_engine(cluster.database_url)
    yield engine
    engine.dispose()


def sent(engine: Engine) -> int:
    """Return how many messages have been published, according to the rows."""
    with engine.connect() as connection:
        return int(connection.execute(select(func.sum(job.c.publish_count))).scalar() or 0)


def put_off(engine: Engine) -> int:
    """Return the lowest number of republish deferrals of a waiting job."""
    waits = job.c.status_id == JobStatus.QUEUED
    with engine.connect() as connection:
        return int(connection.execute(select(func.min(job.c.republish_deferrals)).where(waits)).scalar() or 0)


def lie_in_wait(workload: Workload, count: int) -> None:
    while len(workload.ids) < count:
        more = min(AT_A_TIME, count - len(workload.ids))
        workload.submit([workload.job("work", 0, queue=STANDS) for _ in range(more)])


@pytest.mark.parametrize("broker_url", BACKLOG, indirect=True)
def test_backlog_without_a_worker_is_not_republished(
    new_cluster: NewCluster, broker_url: str, request: pytest.FixtureRequest
) -> None:
    wait = 3 * max(1, SCALE / 4)
    cluster = new_cluster(
        broker_url=broker_url,
        settings={
            "jobhandle_republish_after": wait,
            "jobhandle_publish_grace": 10,
            "worker_prefetch_multiplier": 8,
        },
    )
    workload = Workload(cluster)
    count = scaled(BACKLOG[request.node.callspec.params["broker_url"]])
    with rows(cluster) as engine:
        lie_in_wait(workload, count)
        # One wait, and two more.
        sweep_until(cluster.jobs, lambda: put_off(engine) >= 2, 60 * wait)
    lying = lying_in(cluster.app, STANDS)
    assert set(lying) == set(workload.ids)
    assert len(lying) < 1.5 * count
    # To run all of them takes long; so only some run.
    cluster.start(BODIES, queues=[STANDS], concurrency=4)
    eventually(lambda: workload.count_started() >= 100)
    cluster.jobs.cancel_many(status=UNFINISHED)
    workload.wait_until_final()
    workload.audit(events_of=100)


def test_backlog_at_a_slow_worker_costs_under_two_messages_a_job(
    new_cluster: NewCluster, broker_url: str
) -> None:
    """Reserved messages are in no queue, so the queue depth is always short by them, and by no more."""
    cluster = new_cluster(
        broker_url=broker_url, settings={"jobhandle_republish_after": 1.5, "worker_prefetch_multiplier": 4}
    )
    workload = Workload(cluster)
    slow = workload.submit([workload.job("listen", 600, queue=STANDS) for _ in range(2)])
    cluster.start(BODIES, queues=[STANDS], concurrency=2)
    eventually(lambda: workload.count_started() == len(slow))
    count = len(slow) + scaled(80)
    with rows(cluster) as engine:
        lie_in_wait(workload, count)
        eventually(lambda: put_off(engine) >= 2)
        assert sent(engine) < 1.5 * count
    for job_id in slow:
        workload.cancel(job_id)
    workload.wait_until_final()
    workload.audit()


def test_batch_slower_than_the_publish_grace_is_sent_once(
    new_cluster: NewCluster, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep publishes what the submitter has not reached; the submitter notices, batch by batch."""
    cluster = new_cluster(broker_url=broker_url, settings={"jobhandle_publish_grace": 0.1})
    sweeper = Celery("sweeper", broker=broker_url, set_as_current=False)
    sweeper.conf.update(cluster.settings)
    jobs = Jobs(sweeper, cluster.database_url)
    workload = Workload(cluster)
    count, part = scaled(200), 20
    monkeypatch.setattr(submitter, "BATCH", part)
    send, sends = BrokerConnection.send, itertools.count(1)

    def hold_the_second_part(line: BrokerConnection, *given: Any) -> None:
        if line._app is cluster.app and next(sends) == 2:
            # The query flushes the first mark; on a busy machine the mark may come later than the grace.
            cluster.jobs.count_by_status()
            sweep_until(jobs, lambda: jobs.count_by_status()[JobStatus.QUEUED] == count, 60)
        send(line, *given)

    monkeypatch.setattr(BrokerConnection, "send", hold_the_second_part)
    workload.submit([workload.job("work", 0, queue=STANDS) for _ in range(count)])
    assert count < depth(cluster.app, STANDS) <= count + part
    jobs.close()


def test_other_tasks_messages_hide_no_lost_job(
    new_cluster: NewCluster, private_broker: PrivateBroker
) -> None:
    """As many plain messages as were lost lie in the queue: the queue depth alone would hide the loss."""
    cluster = new_cluster(broker_url=private_broker.url, settings={"jobhandle_republish_after": 0.5})
    workload = Workload(cluster)
    workload.submit([workload.job("work", 0, queue=STANDS) for _ in range(scaled(20))])
    private_broker.lose_messages()
    for _ in range(2 * len(workload.ids)):
        cluster.call("plain", str(workload.path) + "-plain", queue=STANDS)
    with rows(cluster) as engine:
        already = sent(engine)
        assert depth(cluster.app, STANDS) >= 2 * len(workload.ids)
        sweep_until(cluster.jobs, lambda: put_off(engine) > 0, 60)
        sweep_until(cluster.jobs, lambda: sent(engine) >= already + len(workload.ids))
    cluster.start(BODIES, queues=[STANDS])
    workload.wait_until_final()
    workload.audit()
