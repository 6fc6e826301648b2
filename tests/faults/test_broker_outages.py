"""A broker is dead, silent or unreachable: submit returns, bodies go on, jobs are published when it is back.

Silent means that the network drops packets: connections stay open, and no answer arrives.
"""

import threading
from collections.abc import Callable
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any

import pytest
from sqlalchemy import create_engine, select

from jobhandle_celery import JobStatus
from jobhandle_celery.schema import clock, worker
from tests.faults.broker_gate import Gate
from tests.faults.brokers import PrivateBroker, PrivateRabbitmq, away
from tests.faults.workload import BODIES, Workload
from tests.rng import scaled, stretched
from tests.servers import RabbitmqServer
from tests.support import eventually
from tests.worker.cluster import Cluster, NewCluster

pytestmark = [pytest.mark.faults, pytest.mark.timeout(stretched(900))]

TIMEOUT = 120
"""Seconds; a publisher that did not reach the broker twice pauses for ten."""


class Submitter:
    """A thread with its own connection to the broker; a hanging one can be abandoned."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._ended: SimpleQueue[BaseException | None] = SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def __call__(self, work: Callable[[], object], bound: float = 40) -> None:
        """Do it, and fail if it takes longer than that many seconds: several times what it should."""
        self._work.put(work)
        try:
            failed = self._ended.get(timeout=bound)
        except Empty:
            raise AssertionError(f"not within {bound:g} s") from None
        if failed:
            raise failed

    def _run(self) -> None:
        while True:
            work = self._work.get()
            try:
                work()
            except BaseException as error:
                self._ended.put(error)
            else:
                self._ended.put(None)


def lapsed(cluster: Cluster) -> list[str]:
    """Return the workers whose lease has ended."""
    engine = create_engine(cluster.database_url)
    try:
        with engine.connect() as connection:
            return list(
                connection.execute(select(worker.c.name).where(worker.c.lease_until < clock())).scalars()
            )
    finally:
        engine.dispose()


@pytest.mark.parametrize(
    ("private_broker", "database"),
    [("redis", "sqlite"), ("rabbitmq", "postgresql")],
    indirect=["private_broker"],
)
def test_jobs_submitted_to_a_dead_broker_run_when_it_is_back(
    new_cluster: NewCluster, private_broker: PrivateBroker, database: str
) -> None:
    cluster = new_cluster(database=database, broker_url=private_broker.url)
    workload, submit = Workload(cluster), Submitter()
    cluster.start(BODIES)
    submit(lambda: workload.submit_mixed(1))
    with away(private_broker):
        for _ in range(10):
            submit(lambda: workload.submit_mixed(scaled(2)))
        assert {workload.handle(job_id).job_status() for job_id in workload.ids[1:]} == {JobStatus.SUBMITTED}
        latecomer = cluster.start(BODIES, ready=False)
        eventually(lambda: "Cannot connect" in latecomer.log, TIMEOUT)
    workload.wait_until_final(TIMEOUT)
    workload.audit()


def test_silent_broker_delays_no_submit_body_or_lease(
    new_cluster: NewCluster, private_broker: PrivateBroker
) -> None:
    cluster = new_cluster(
        broker_url=private_broker.url,
        settings={"jobhandle_republish_after": 2, "broker_heartbeat": 4},
    )
    workload, submit = Workload(cluster), Submitter()
    cluster.start(BODIES, concurrency=4)
    # Published by the worker, so that it holds a connection that looks healthy.
    workload.submit([workload.job("work", 0, scheduled_for=timedelta(seconds=0.2))])
    workload.wait_until_final(TIMEOUT)
    lease = cluster.settings["jobhandle_lease"]
    long = [workload.job(task, 2 * lease) for task in ("work", "work_late", "listen")]
    submit(lambda: workload.submit(long))
    running = workload.ids[1:]
    eventually(lambda: workload.count_started() == len(workload.ids), TIMEOUT)
    private_broker.pause()
    try:
        submit(lambda: workload.submit_mixed(scaled(10)))
        statuses = {job_id: workload.handle(job_id).job_status() for job_id in workload.ids}
        assert {statuses[job_id] for job_id in workload.ids[1 + len(running) :]} == {JobStatus.SUBMITTED}
        # They run for longer than a lease, and their rows become final, without the broker.
        eventually(
            lambda: lapsed(cluster) or all(workload.handle(job_id).job_status().final for job_id in running),
            TIMEOUT,
        )
        assert lapsed(cluster) == []
    finally:
        private_broker.resume()
    workload.wait_until_final(TIMEOUT)
    rows = workload.audit()
    assert {(rows[job_id].status, rows[job_id].attempt) for job_id in running} == {("Finished", 1)}


REDELIVERING: dict[str, Any] = {
    # Redis: a message not acknowledged within three seconds is delivered to another consumer.
    "broker_transport_options": {
        "visibility_timeout": 3,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    },
    # RabbitMQ: a connection that is silent for twice as long is closed, and what it held is given to another.
    "broker_heartbeat": 2,
    "jobhandle_republish_after": 2,
}


def test_worker_cut_off_from_the_broker_keeps_its_jobs(new_cluster: NewCluster, broker_url: str) -> None:
    with Gate(broker_url) as gate:
        cluster = new_cluster(broker_url=broker_url, settings=REDELIVERING)
        workload = Workload(cluster)
        remote = cluster.start(BODIES, broker_url=gate.url, concurrency=2)
        late = workload.submit([workload.job("work_late", 10) for _ in range(2)])
        eventually(lambda: workload.count_started() == len(late))
        with gate.shut():
            near = cluster.start(BODIES)
            workload.submit_mixed(scaled(20))
            tasks = [workload.handle(job_id).get_job().task_id for job_id in late]
            eventually(lambda: all(f"[{task_id}] received" in near.log for task_id in tasks), TIMEOUT)
            eventually(lambda: all(workload.handle(job_id).job_status().final for job_id in late), TIMEOUT)
        gate.cut_all()
        workload.wait_until_final(TIMEOUT)
        rows = workload.audit()
        assert {(rows[job_id].status, rows[job_id].attempt) for job_id in late} == {("Finished", 1)}
        assert {str(rows[job_id].worker) for job_id in late} == {remote.nodename}
        near.terminate()
        near.wait(60)
        # It renews its lease again.
        workload.submit_mixed(scaled(5))
        workload.wait_until_final(TIMEOUT)
        workload.audit()


def test_broker_in_alarm_delays_jobs(new_cluster: NewCluster, private_rabbitmq: RabbitmqServer) -> None:
    """RabbitMQ stops reading from publishers when its memory or disk is short."""
    broker = PrivateRabbitmq(private_rabbitmq)
    cluster = new_cluster(broker_url=broker.url, settings={"jobhandle_republish_after": 2})
    workload, submit = Workload(cluster), Submitter()
    cluster.start(BODIES)
    submit(lambda: workload.submit_mixed(1))
    private_rabbitmq.control("set_vm_memory_high_watermark", "0.00001")
    try:
        submit(lambda: workload.submit_mixed(scaled(10)))
        assert {workload.handle(job_id).job_status() for job_id in workload.ids[1:]} == {JobStatus.SUBMITTED}
    finally:
        private_rabbitmq.control("set_vm_memory_high_watermark", "0.4")
    workload.wait_until_final(TIMEOUT)
    workload.audit()
