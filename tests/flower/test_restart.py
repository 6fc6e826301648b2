"""replay-events restores the history of a restarted Flower."""

import pytest

from jobhandle_celery import JobHandle, JobStatus
from tests.cli.runner import run_command
from tests.flower.conftest import start
from tests.flower.process import Flower
from tests.reaper import Reaper
from tests.support import eventually
from tests.worker.cluster import Cluster

pytestmark = pytest.mark.flower


def history(cluster: Cluster) -> dict[str, JobHandle]:
    """Submit jobs that end in every way; return them by the state that Flower must show."""
    good, bad = cluster.submit("add", 1, 2), cluster.submit("raise_value_error", "of no value")
    again = cluster.submit("retry_times", str(cluster.new_file()), 1, 600)
    eventually(lambda: again.job_status() is JobStatus.REQUEUED)
    never = cluster.submit("add", 1, 1, queue="unconsumed")
    assert never.cancel_job() is JobStatus.CANCELLED
    # On a worker of its own: the other worker sends the event by which Flower is known to listen.
    start(cluster, queues=["busy"])
    running = cluster.submit("deaf", str(cluster.new_file()), 600, queue="busy")
    eventually(running.job_running)
    return {"SUCCESS": good, "FAILURE": bad, "RETRY": again, "REVOKED": never, "STARTED": running}


def test_replay_restores_the_states_of_all_jobs(cluster: Cluster, reaper: Reaper) -> None:
    handles = history(cluster)
    flower = Flower(cluster, reaper)
    try:
        flower.wait_until_it_listens()
        assert {flower.state(handle) for handle in (handles["SUCCESS"], handles["FAILURE"])} == {None}

        assert run_command(cluster.app, "replay-events", "--since", "1h").code == 0

        for state, handle in handles.items():
            flower.wait_for(handle, state)
            assert flower.search(f"kwargs:job_id={handle.job_id}") == {handle.get_job().task_id}
        assert "of no value" in flower.wait_for(handles["FAILURE"], "FAILURE")["exception"]
        assert flower.wait_for(handles["SUCCESS"], "SUCCESS")["result"] == "3"
    finally:
        flower.end()
        for state in ("RETRY", "STARTED"):
            handles[state].cancel_job(terminate=True)
