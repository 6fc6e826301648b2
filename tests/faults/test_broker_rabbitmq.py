"""The life of a job on RabbitMQ, on classic and on quorum queues, is as on Redis."""

import pickle
import time
from datetime import datetime, timedelta
from typing import Any

import pytest
from kombu import Queue

from jobhandle_celery import JobHandle, JobStatus
from tests.apps import lines_of
from tests.faults.brokers import depth
from tests.faults.worker_faults import account_for_attempts
from tests.faults.workload import BODIES, Workload
from tests.rng import scaled, stretched
from tests.servers import VirtualHosts
from tests.support import eventually
from tests.worker.cluster import Cluster, NewCluster, statuses

pytestmark = [pytest.mark.faults, pytest.mark.timeout(stretched(900))]

QUEUE_TYPES: dict[str, dict[str, Any]] = {
    "classic": {},
    "quorum": {
        "task_default_queue_type": "quorum",
        "task_default_exchange_type": "topic",
        # Celery's own 28 queues for its delays take seconds to make as quorum queues.
        "broker_native_delayed_delivery_queue_type": "classic",
    },
}
TIMEOUT = 60


@pytest.fixture(scope="module", params=QUEUE_TYPES)
def cluster(
    request: pytest.FixtureRequest, module_cluster: NewCluster, virtual_hosts: VirtualHosts
) -> Cluster:
    """A cluster with a worker of two processes."""
    cluster = module_cluster(broker_url=virtual_hosts.create(), settings=QUEUE_TYPES[request.param])
    cluster.start(BODIES, arguments=["-E"])
    return cluster


@pytest.fixture
def workload(cluster: Cluster) -> Workload:
    return Workload(cluster)


def ends(handle: JobHandle) -> JobStatus:
    return handle.wait(TIMEOUT)


def submit(workload: Workload, task: str, *args: Any, **fields: Any) -> JobHandle:
    [job_id] = workload.submit([workload.job(task, *args, **fields)])
    return workload.handle(job_id)


def test_job_runs_and_its_result_is_in_its_row(workload: Workload) -> None:
    handle = submit(workload, "work", 0)
    assert handle.result(TIMEOUT) == "worked"
    assert handle.get_job().queue == "celery"
    workload.audit()


def test_mixed_workload_without_faults(workload: Workload) -> None:
    workload.submit_mixed(scaled(60), 0.02)
    for job_id in workload.rng.sample(workload.ids, len(workload.ids) // 4):
        workload.cancel(job_id)
    workload.wait_until_final()
    rows = workload.audit()
    assert {row.status for row in rows.values()} == {"Finished", "Error", "Cancelled"}


def test_retry_waits_in_the_row_and_not_in_the_broker(workload: Workload) -> None:
    handle = submit(workload, "again", 0, 1, 2)
    eventually(lambda: handle.job_status() is JobStatus.REQUEUED, TIMEOUT)
    assert workload.count_started() == 1
    assert ends(handle) is JobStatus.FINISHED
    first, second = workload.body_traces()[workload.ids[0]]
    assert second.begun - first.last_seen >= 2
    workload.audit()


def test_job_does_not_start_before_its_time(workload: Workload) -> None:
    handle = submit(workload, "work", 0, scheduled_for=timedelta(seconds=2))
    assert handle.job_status() is JobStatus.WAITING
    assert ends(handle) is JobStatus.FINISHED
    job = workload.audit()[workload.ids[0]]
    assert job.started is not None
    assert isinstance(job.scheduled_for, datetime)
    assert job.started >= job.scheduled_for


def test_cancelled_job_with_a_queued_message_is_not_started(workload: Workload) -> None:
    queue = "cancelled"
    for number in range(20):
        submit(workload, "work", 0, queue=queue)
        assert depth(workload.cluster.app, queue) == number + 1
    for job_id in workload.ids[::2]:
        assert workload.cancel(job_id) is JobStatus.CANCELLED
    workload.cluster.app.control.add_consumer(queue, reply=True)
    workload.wait_until_final()
    workload.audit()
    assert set(workload.body_traces()) == set(workload.ids[1::2])
    eventually(lambda: depth(workload.cluster.app, queue) == 0)


def test_cancelled_job_is_revoked_for_event_receivers(workload: Workload) -> None:
    cluster, queue = workload.cluster, "watched"
    handle = submit(workload, "work", 0, queue=queue)
    task_id = handle.get_job().task_id
    handle.cancel_job()
    with cluster.events() as events:
        cluster.app.control.add_consumer(queue, reply=True)
        eventually(lambda: "task-revoked" in events.of(task_id), TIMEOUT)
    assert cluster.state(task_id) == "REVOKED"


def test_running_job_receives_a_stop_request(workload: Workload) -> None:
    asked = submit(workload, "listen", 60)
    ended = submit(workload, "work", 60)
    eventually(lambda: workload.count_started() == 2, TIMEOUT)
    assert asked.cancel_job() is JobStatus.RUNNING
    assert ended.cancel_job(terminate=True) is JobStatus.RUNNING
    assert ends(asked) is JobStatus.CANCELLED
    assert ends(ended) is JobStatus.CANCELLED
    workload.audit()


def test_job_is_resubmitted(workload: Workload) -> None:
    handle = submit(workload, "work", 0)
    assert ends(handle) is JobStatus.FINISHED
    handle.resubmit_job()
    assert ends(handle) is JobStatus.FINISHED
    workload.audit()
    assert [trace.attempt for trace in workload.body_traces()[workload.ids[0]]] == [1, 2]


def test_expired_job_is_not_started(workload: Workload) -> None:
    queue = "expired"
    handle = submit(workload, "work", 0, queue=queue, expires=timedelta(seconds=1))
    assert depth(workload.cluster.app, queue) == 1
    assert ends(handle) is JobStatus.CANCELLED
    workload.cluster.app.control.add_consumer(queue, reply=True)
    eventually(lambda: depth(workload.cluster.app, queue) == 0)
    assert workload.body_traces() == {}


def test_job_of_unknown_task_waits_for_a_worker_that_knows_it(workload: Workload) -> None:
    handle = submit(workload, "nobody_knows_this")
    eventually(lambda: len(statuses(workload.cluster, handle)) > 1, TIMEOUT)
    assert handle.job_status() is JobStatus.SUBMITTED
    assert "does not know" in workload.cluster.jobs.events(workload.ids[0])[-1].message
    handle.cancel_job()


def test_message_delivered_twice_starts_nothing(workload: Workload) -> None:
    cluster, queue = workload.cluster, "twice"
    handle = submit(workload, "work", 0.2, queue=queue)
    with cluster.app.connection() as connection:
        channel: Any = connection.default_channel
        message = channel.basic_get(queue)
        for _ in range(3):
            again = channel.prepare_message(
                message.body,
                content_type=message.content_type,
                content_encoding=message.content_encoding,
                headers=message.headers,
                properties={"correlation_id": message.properties["correlation_id"]},
            )
            channel.basic_publish(again, exchange="", routing_key=queue)
        # And the first one again, as if it had not been acknowledged.
    eventually(lambda: depth(cluster.app, queue) == 4)
    cluster.app.control.add_consumer(queue, reply=True)
    assert ends(handle) is JobStatus.FINISHED
    eventually(lambda: depth(cluster.app, queue) == 0)
    workload.audit()


def test_unreadable_messages_delay_no_other(workload: Workload) -> None:
    cluster, queue = workload.cluster, "spoilt"
    workload.submit_mixed(scaled(30), 0.02, queue=queue)
    with cluster.app.connection() as connection:
        channel: Any = connection.default_channel
        # Not acknowledged, so that the good ones are given back at the end.
        messages = list(iter(lambda: channel.basic_get(queue), None))
        for number, message in enumerate(messages):
            properties = {
                name: getattr(message, name) for name in ("content_type", "content_encoding", "headers")
            }
            body = message.body
            match number % 5:
                case 0:
                    body = body[: workload.rng.randrange(len(body))]
                case 1:
                    wrong = workload.rng.choice([7, {}, {"id": "x", "attempt": 1}, [1]])
                    properties["headers"] = properties["headers"] | {"jobhandle": wrong}
                case 2:
                    properties["headers"] = properties["headers"] | {"task": "known.to.nobody"}
                case 3:
                    body = pickle.dumps(body)
                    properties |= {
                        "content_type": "application/x-python-serialize",
                        "content_encoding": "binary",
                    }
                case 4:
                    properties["headers"] = dict(properties["headers"])
                    del properties["headers"][workload.rng.choice(["id", "task", "jobhandle"])]
            channel.basic_publish(channel.prepare_message(body, **properties), exchange="", routing_key=queue)
    eventually(lambda: depth(cluster.app, queue) == 2 * len(workload.ids))
    cluster.app.control.add_consumer(queue, reply=True)
    workload.wait_until_final()
    account_for_attempts(workload, workload.audit())
    eventually(lambda: depth(cluster.app, queue) == 0)
    assert all(worker.is_running() for worker in cluster.workers)


# What is set up otherwise.


def test_job_with_a_higher_priority_goes_first(new_cluster: NewCluster, rabbitmq_url: str) -> None:
    cluster = new_cluster(broker_url=rabbitmq_url, settings={"task_queue_max_priority": 9})
    workload = Workload(cluster)
    priorities = [1, 9, 5, 3, 7]
    workload.submit([workload.job("work", 0, priority=priority) for priority in priorities])
    cluster.start(BODIES, concurrency=1)
    workload.wait_until_final()
    workload.audit()
    begun = sorted(workload.body_traces().items(), key=lambda item: item[1][0].begun)
    assert [priorities[workload.ids.index(job_id)] for job_id, _ in begun] == [9, 7, 5, 3, 1]


@pytest.mark.parametrize("confirm", [True, False, None])
def test_message_rejected_by_the_broker_is_not_marked_sent(
    new_cluster: NewCluster, rabbitmq_url: str, confirm: bool | None
) -> None:
    """Whatever `confirm_publish` is set to: without confirms the message would be lost silently."""
    options = {} if confirm is None else {"confirm_publish": confirm}
    cluster = new_cluster(broker_url=rabbitmq_url, settings={"broker_transport_options": options})
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    cluster.app.amqp.queues.add(Queue("full", queue_arguments=full))
    handles = [cluster.submit("work", queue="full") for _ in range(3)]
    # A classic queue may take one or two more than its length.
    assert handles[0].job_status() is JobStatus.QUEUED
    assert handles[-1].job_status() is JobStatus.SUBMITTED
    assert depth(cluster.app, "full") < 3


def test_results_may_go_back_through_the_broker(new_cluster: NewCluster, rabbitmq_url: str) -> None:
    cluster = new_cluster(broker_url=rabbitmq_url, settings={"result_backend": "rpc://"})
    workload = Workload(cluster)
    queue = "later"
    cancelled = submit(workload, "work", 0, queue=queue)
    cancelled.cancel_job()
    cluster.start(BODIES, queues=["celery", queue])
    assert submit(workload, "work", 0).result(TIMEOUT) == "worked"
    assert ends(submit(workload, "fail", 0)) is JobStatus.ERROR
    assert ends(submit(workload, "again", 0, 1, 0)) is JobStatus.FINISHED
    workload.audit()


def test_quorum_queues_carry_celerys_delays(new_cluster: NewCluster, virtual_hosts: VirtualHosts) -> None:
    """Basis of the quorum queue tests above; a plain call beside a job is delayed by Celery."""
    cluster = new_cluster(broker_url=virtual_hosts.create(), settings=QUEUE_TYPES["quorum"])
    workload = Workload(cluster)
    cluster.start(BODIES)
    before = time.time()
    cluster.app.send_task("worker.plain", [str(workload.path)], countdown=2)
    handle = submit(workload, "work", 0, scheduled_for=timedelta(seconds=2))
    host = cluster.app.connection().virtual_host
    queues = {
        queue["name"]: queue["type"]
        for queue in virtual_hosts.management.ask("GET", f"queues/{host}?columns=name,type")
    }
    assert queues["celery"] == "quorum"
    assert "celery_delayed_1" in queues
    assert ends(handle) is JobStatus.FINISHED
    eventually(lambda: "plain" in lines_of(workload.path), TIMEOUT)
    assert time.time() - before >= 2
