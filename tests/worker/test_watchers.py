"""The final state of each task in Flower, from the events that it receives."""

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest
from celery.events.state import State

from jobhandle_celery import JobHandle, JobStatus, Progress
from jobhandle_celery.store import RunSnapshot
from jobhandle_celery.worker.events import EventSender
from tests.support import eventually
from tests.worker.cluster import Cluster, Events, NewCluster

SETTINGS = {"worker_send_task_events": True}


@pytest.fixture
def cluster(new_cluster: NewCluster) -> Cluster:
    return new_cluster(settings=SETTINGS)


@pytest.fixture(scope="module")
def lasting_cluster(module_cluster: NewCluster) -> Cluster:
    """A cluster for the tests that do not change the worker."""
    cluster = module_cluster(settings=SETTINGS)
    cluster.start()
    return cluster


def state_of(events: Events, task_id: str | None) -> str | None:
    """Return the state in Flower, which uses celery.events.state as well."""
    seen: Any = State()
    for event in events.all():
        seen.event(dict(event))
    task = seen.tasks.get(task_id)
    return None if task is None else str(task.state)


def task_id_of(handle: JobHandle) -> str | None:
    return handle.get_job().task_id


def test_progress_without_a_broker_does_not_accumulate() -> None:
    soon: list[RunSnapshot] = []
    consumer = SimpleNamespace(connection=None, call_soon=lambda *call: soon.append(call[-1]))
    event_sender = EventSender(SimpleNamespace(consumer=consumer))
    running: Any = SimpleNamespace(key=(1, "a", 1))

    def after(steps: int) -> list[RunSnapshot]:
        snapshot = RunSnapshot(1, "a", 1, "c", 1, stop=False, terminate=False, progress=Progress(steps))
        event_sender.send_progress([snapshot], [running])
        return soon

    assert [after(step) for step in range(5)][-1] == []
    consumer.connection = object()
    assert [snapshot.progress for snapshot in after(5)] == [Progress(5)]
    assert len(after(5)) == 1


def test_progress_events_can_be_switched_off() -> None:
    """A receiver that knows only Celery's events gets no other (fault 20)."""
    soon: list[Any] = []
    consumer = SimpleNamespace(connection=object(), call_soon=lambda *call: soon.append(call))
    snapshot = RunSnapshot(1, "a", 1, "c", 1, stop=False, terminate=False, progress=Progress(1))
    running: Any = SimpleNamespace(key=(1, "a", 1))
    for progress in (False, True):
        EventSender(SimpleNamespace(consumer=consumer), progress).send_progress([snapshot], [running])
        assert len(soon) == progress


def test_progress_events_come_before_the_end(lasting_cluster: Cluster) -> None:
    cluster = lasting_cluster
    path, sign = cluster.new_file(), cluster.new_file()
    with cluster.events() as events:
        handle = cluster.submit("report_and_wait", str(path), str(sign))
        task_id = task_id_of(handle)
        eventually(lambda: "task-progress" in events.of(task_id))
        assert state_of(events, task_id) == "PROGRESS"
        handle.set_progress(2, 4)
        eventually(lambda: events.of(task_id).count("task-progress") > 1)
        sign.touch()
        eventually(lambda: "task-succeeded" in events.of(task_id))
        sent = [event for event in events.all() if event["type"] == "task-progress"]
    assert [(event["message"], event["current"], event["total"]) for event in sent][-1] == ("reading", 2, 4)
    assert (sent[-1]["percentage"], sent[-1]["result"]) == (50, "50 %: reading")
    assert events.of(task_id)[-1] == "task-succeeded"
    assert state_of(events, task_id) == "SUCCESS"


@pytest.mark.parametrize("terminate", [False, True])
def test_job_cancelled_after_progress_is_shown_revoked(lasting_cluster: Cluster, terminate: bool) -> None:
    cluster = lasting_cluster
    path, sign = cluster.new_file(), cluster.new_file()
    with cluster.events() as events:
        handle = cluster.submit("report_and_wait", str(path), str(sign))
        task_id = task_id_of(handle)
        eventually(lambda: "task-progress" in events.of(task_id))
        handle.cancel_job(terminate=terminate)
        if terminate:
            eventually(lambda: state_of(events, task_id) == "REVOKED")
            assert handle.wait(30) is JobStatus.CANCELLED
        else:
            sign.touch()
            eventually(lambda: state_of(events, task_id) == "SUCCESS")
            assert handle.wait(30) is JobStatus.FINISHED


@pytest.mark.faults
@pytest.mark.parametrize(
    ("attempts", "cancelled", "left_with"),
    [(1, False, "FAILURE"), (2, False, "RETRY"), (2, True, "REVOKED")],
)
def test_job_of_a_lost_worker_is_not_shown_started(
    cluster: Cluster, attempts: int, cancelled: bool, left_with: str
) -> None:
    worker = cluster.start(queues=["first"])
    other = cluster.start(queues=["second"])
    path = cluster.new_file()
    with cluster.events() as events:
        handle = cluster.submit("deaf", str(path), 60, queue="first", max_attempts=attempts)
        task_id = task_id_of(handle)
        eventually(path.exists)
        if cancelled:
            handle.cancel_job()
        worker.kill()
        eventually(lambda: state_of(events, task_id) == left_with)
    assert other.is_running()


@pytest.mark.faults
@pytest.mark.parametrize(("attempts", "sent"), [(1, "task-failed"), (2, "task-retried")])
def test_lost_child_sends_one_event(lasting_cluster: Cluster, attempts: int, sent: str) -> None:
    """A counter of failures sees one, and none if the job runs again (fault 20)."""
    cluster = lasting_cluster
    path = cluster.new_file()
    with cluster.events() as events:
        handle = cluster.submit("killed_once", str(path), max_attempts=attempts)
        task_id = task_id_of(handle)
        handle.wait(30)
        ended = ["task-failed"] if attempts == 1 else ["task-retried", "task-succeeded"]
        eventually(lambda: events.of(task_id)[-1] == ended[-1])
        [event] = [event for event in events.all() if (event["type"], event.get("uuid")) == (sent, task_id)]
    assert "signal 9" in event["exception"]
    assert event["exception"].startswith("WorkerLostError(") == (attempts == 1)
    went = [kind for kind in events.of(task_id) if kind not in ("task-received", "task-started")]
    assert went == ended


@pytest.mark.faults
def test_lost_child_after_its_outcome_sends_that_outcome(lasting_cluster: Cluster) -> None:
    with lasting_cluster.events() as events:
        handle = lasting_cluster.submit("dies_after_its_end")
        task_id = task_id_of(handle)
        assert handle.wait(30) is JobStatus.FINISHED
        eventually(lambda: "task-succeeded" in events.of(task_id))
    assert "task-failed" not in events.of(task_id)


def test_job_given_back_is_shown_retried(cluster: Cluster) -> None:
    worker = cluster.start(settings={"worker_soft_shutdown_timeout": 0.1})
    path, sign = cluster.new_file(), cluster.new_file()
    with cluster.events() as events:
        handle = cluster.submit("until_there", str(path), str(sign))
        task_id = task_id_of(handle)
        eventually(path.exists)
        os.kill(worker.pid, signal.SIGQUIT)
        worker.wait()
        assert not handle.job_running()
        eventually(lambda: state_of(events, task_id) == "RETRY")
        sign.touch()
        cluster.start()
        assert handle.wait(30) is JobStatus.FINISHED
        eventually(lambda: state_of(events, task_id) == "SUCCESS")
    assert "task-cancelled" not in events.of(task_id)


def test_job_finished_in_soft_shutdown_is_shown_succeeded(cluster: Cluster) -> None:
    worker = cluster.start(settings={"worker_soft_shutdown_timeout": 3})
    path, sign = cluster.new_file(), cluster.new_file()
    with cluster.events() as events:
        handle = cluster.submit("until_there", str(path), str(sign))
        task_id = task_id_of(handle)
        eventually(path.exists)
        os.kill(worker.pid, signal.SIGQUIT)
        eventually(lambda: "Soft Shutdown" in worker.log)
        sign.touch()
        worker.wait()
        assert handle.job_status() is JobStatus.FINISHED
        eventually(lambda: state_of(events, task_id) == "SUCCESS")
        sent = [event["result"] for event in events.all() if event["type"] == "task-succeeded"]
    # Celery may have sent it in time, too.
    assert set(sent) == {"'seen'"}
