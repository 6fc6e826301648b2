"""Bodies that exceed the memory limit end as lost or failed; other jobs are unaffected."""

import signal
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.worker_faults import account_for_attempts
from tests.faults.workload import Workload
from tests.rng import scaled, stretched
from tests.support import eventually
from tests.worker.cluster import NewCluster
from tests.workers import WorkerProcess

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(stretched(900))]

BODIES = "tests.faults.worker_bodies:app"
SETTINGS = {"jobhandle_lease": 2, "jobhandle_republish_after": 2}
PLACES = (
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.oom_control"),
    ("/sys/fs/cgroup", "memory.max", "memory.events"),
)
"""For each version of control groups: its folders, the limit, and the count of kills."""
LIMIT = 500 * 2**20
"""Bytes for a worker and its children together."""


class MemoryLimit:
    """A control group with a memory limit."""

    def __init__(self, folder: Path, counted_in: str) -> None:
        self._folder = folder
        self._counted_in = counted_in

    def limit(self, worker: WorkerProcess) -> None:
        for pid in (worker.pid, *worker.children()):
            (self._folder / "cgroup.procs").write_text(str(pid))

    def kills(self) -> int:
        """Return how many processes of the group the kernel has killed."""
        counts = dict(line.split() for line in (self._folder / self._counted_in).read_text().splitlines())
        return int(counts["oom_kill"])

    def close(self) -> None:
        eventually(lambda: not (self._folder / "cgroup.procs").read_text())
        self._folder.rmdir()


def _made() -> MemoryLimit | None:
    """Make a control group; return None without the rights to."""
    for root, limit, counted_in in PLACES:
        folder = Path(root) / f"jobhandle-test-{uuid.uuid4()}"
        with suppress(OSError):
            folder.mkdir()
            try:
                with open(folder / limit, "r+") as file:  # creates no file
                    file.write(str(LIMIT))
            except OSError:
                folder.rmdir()
                raise
            return MemoryLimit(folder, counted_in)
    return None


@pytest.fixture
def memory_limit() -> Iterator[MemoryLimit]:
    limit = _made()
    if limit is None:
        # Also with `CI` set: CI need not run as root.
        pytest.skip("no control group can be made here that limits memory: only root may, on Linux")
    yield limit
    limit.close()


def test_process_killed_for_its_memory_loses_no_other_job(
    memory_limit: MemoryLimit, new_cluster: NewCluster
) -> None:
    cluster = new_cluster(settings=SETTINGS)
    workload = Workload(cluster)
    worker = cluster.start(BODIES, concurrency=3)
    memory_limit.limit(worker)
    healthy = workload.submit_mixed(scaled(30), 0.1)
    fat = workload.submit([workload.job("swell", max_attempts=2) for _ in range(3)])
    healthy += workload.submit_mixed(scaled(30), 0.1)

    workload.wait_until_final()

    assert memory_limit.kills() >= len(fat), "they died of something else"
    rows = workload.audit(lost_before_body=True)
    account_for_attempts(workload, rows)
    for job_id in fat:
        error = rows[job_id].error
        assert error is not None
        assert (error.kind, error.type, rows[job_id].attempt) == ("system", "WorkerLostError", 2)
        assert str(signal.Signals.SIGKILL.value) in error.message
    assert {error.kind for job_id in healthy if (error := rows[job_id].error)} == {"task"}
    assert worker.is_running()


def test_memory_error_ends_its_own_body_alone(new_cluster: NewCluster) -> None:
    """Celery ends the worker for it; the test starts another, as a supervisor does."""
    cluster = new_cluster(settings=SETTINGS)
    workload = Workload(cluster)
    worker = cluster.start(BODIES, concurrency=3)
    workload.submit_mixed(scaled(30), 0.3)
    [fat] = workload.submit([workload.job("hog")])
    eventually(lambda: not worker.is_running())
    cluster.start(BODIES, concurrency=3)

    workload.wait_until_final()

    rows = workload.audit(lost_before_body=True)
    error = rows.pop(fat).error
    assert error is not None
    assert (error.kind, error.type) == ("task", "MemoryError")
    tally = account_for_attempts(workload, rows)
    assert not tally["lost"], tally
