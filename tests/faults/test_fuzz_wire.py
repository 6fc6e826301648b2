"""Forged messages with a job's header run no body, change no row, and do not stop the worker.

`JOBHANDLE_FAULTS_INPUTS=10000` sends as many messages to one worker; some hundreds are the default.
"""

import math
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from jobhandle_celery import JobStatus
from tests.apps import lines_of
from tests.faults.fuzz_values import INPUTS
from tests.faults.fuzz_wire import FORGERIES, QUIET, Forgery, Passes, Wire
from tests.worker.cluster import Cluster, NewCluster

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600 + INPUTS // 5)]

A_BATCH = 40
"""Messages between two checks of the rows."""


@pytest.fixture(scope="module")
def cluster(module_cluster: NewCluster) -> Cluster:
    cluster = module_cluster(database="sqlite", settings=QUIET)
    cluster.start(concurrency=1)
    return cluster


def test_forged_messages_change_nothing(cluster: Cluster) -> None:
    wire = Wire(cluster)
    already = wire.sent
    worker = cluster.workers[0]
    before = wire.rows()

    @settings(
        max_examples=math.ceil(INPUTS / A_BATCH),
        deadline=None,
        database=None,
        # Not shrunk: a worker may treat a second copy of a message differently.
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(FORGERIES, min_size=A_BATCH, max_size=A_BATCH))
    def send(forgeries: list[Forgery]) -> None:
        for forgery in forgeries:
            wire.forge(forgery)
        wire.wait_until_final()
        assert lines_of(wire.lines) == []
        assert wire.rows() == before
        assert worker.is_running()

    try:
        send()
    finally:
        wire.close()
    assert wire.sent - already >= INPUTS
    assert worker.log.count("ready.") == 1, "the worker had to begin anew"
    assert cluster.submit("add", 2, 3).result(timeout=20) == 5


@pytest.mark.parametrize(
    "headers",
    [
        {"expires": "2001-01-01T00:00:00+00:00"},
        {"expires": "2999-01-01T00:00:00+00:00"},
        {"eta": "2001-01-01T00:00:00+00:00"},
        {"eta": "2999-01-01T00:00:00+00:00"},
        {"chain": [], "retries": 3, "shadow": "another name", "redelivered": True},
        {"task": "worker.nobody_knows"},
        {"id": "00000000-0000-4000-8000-000000000000"},
    ],
    ids=str,
)
def test_forged_properties_beside_a_true_header_change_no_job(
    cluster: Cluster, headers: dict[str, Any]
) -> None:
    path = cluster.new_file()
    handle, message = cluster.submit_parked("append", str(path), "body")

    for _ in range(3):
        cluster.deliver(message, **headers)
    cluster.fence()
    Passes(cluster).wait()
    assert handle.job_status() in (JobStatus.QUEUED, JobStatus.FINISHED)
    cluster.deliver(message)

    assert handle.wait(20) is JobStatus.FINISHED
    cluster.fence()
    assert lines_of(path) == ["body"]
    assert handle.get_job().attempt == 1
