"""Many jobs from many processes while workers are killed: no job is lost, and workers do not grow."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from jobhandle_celery import JobStatus
from tests.faults.step_faults import SURVIVED, step_runner
from tests.faults.worker_faults import all_ready, send
from tests.faults.workload import BODIES, WorkerSupervisor, Workload, repeating_fault
from tests.rng import SCALE, scaled, stretched
from tests.support import eventually
from tests.worker.cluster import Cluster, NewCluster
from tests.workers import WorkerProcess

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(stretched(900))]

PROCESSES = 8
SETTINGS = {
    "jobhandle_lease": 3,
    # As long as a backlog of that size may take: otherwise most messages are duplicates, which are rejected.
    "jobhandle_republish_after": 10 * max(1.0, SCALE / 10),
    "worker_prefetch_multiplier": 4,
}
CALM = 100
"""Jobs that end between the start of a worker and its kill, so that it ran some of them."""
MIB = 2**20
GROWTH = 50 * MIB


class Memory:
    """Samples of the memory of a worker's processes; this worker is not killed."""

    def __init__(self, worker: WorkerProcess) -> None:
        self._worker = worker
        self.seen: list[tuple[int, int]] = []
        """Bytes of the main process, and of its largest child."""

    def look(self) -> None:
        main, children = psutil.Process(self._worker.pid), map(psutil.Process, self._worker.children())
        self.seen.append((main.memory_info().rss, max(child.memory_info().rss for child in children)))

    def grown(self) -> tuple[int, int]:
        """Return the growth in bytes from the first sample to the last."""
        (main, child), (main_now, child_now) = self.seen[0], self.seen[-1]
        for name, before, after, most in (
            ("main process", main, main_now, max(seen[0] for seen in self.seen)),
            ("a child", child, child_now, max(seen[1] for seen in self.seen)),
        ):
            print(f"{name}: {before / MIB:.1f} MiB, then {after / MIB:.1f}, at most {most / MIB:.1f}")
        return main_now - main, child_now - child


class Tally:
    """The count of final jobs, queried rarely, so that the query is no load."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._lock = threading.Lock()
        self._again_at = 0.0
        self._final = 0

    def final(self) -> int:
        with self._lock:
            asked_at = time.monotonic()
            if asked_at >= self._again_at:
                counts = self._cluster.jobs.count_by_status()
                self._final = sum(counts[status] for status in JobStatus if status.final)
                answered_at = time.monotonic()
                self._again_at = answered_at + 10 * (answered_at - asked_at)
            return self._final


def test_load_loses_no_job_and_workers_do_not_grow(new_cluster: NewCluster) -> None:
    cluster = new_cluster(settings=SETTINGS)
    workload = Workload(cluster)
    number = scaled(1000 / PROCESSES) * PROCESSES
    survivor = cluster.start(BODIES, concurrency=2)
    mortal = WorkerSupervisor(lambda: cluster.start(BODIES, ready=False, concurrency=2), 1)
    pause = min(CALM, number // 2)
    since, kills = 0, list[int]()
    memory, tally = Memory(survivor), Tally(cluster)
    began = time.monotonic()

    def kill() -> None:
        # By final jobs, not by time: so the first kill comes before the load is over, however quick it is.
        nonlocal since
        ended = tally.final()
        if not all_ready(mortal):
            since = ended
        elif since + pause <= ended < number and send(signal.SIGKILL)(mortal, workload.rng):
            kills.append(ended)

    def all_ended() -> bool:
        ended = tally.final()
        if ended > number / 20:
            memory.look()
        return ended == number

    with (
        step_runner(
            cluster, "submit_together", path=str(workload.path), processes=PROCESSES, each=number // PROCESSES
        ) as others,
        ThreadPoolExecutor() as pool,
        repeating_fault(kill, (0.1, 0.2), workload.rng),
    ):
        submitted = pool.submit(others.do, 0, signal.SIGKILL)
        eventually(all_ended, stretched(300), "the load")
        assert submitted.result() == SURVIVED
    took = time.monotonic() - began
    print(f"{number} jobs in {took:.0f} s, {number / took:.0f} a second; killed after {kills}")
    assert kills

    workload.adopt_all_jobs()
    rows = workload.audit(lost_before_body=True, events_of=min(number, 1000))
    assert len(rows) == number
    assert {row.status for row in rows.values()} == {JobStatus.FINISHED}
    again = sum((row.attempt or 0) > 1 for row in rows.values())
    print(f"{again} jobs were begun more than once")
    assert max(memory.grown()) < GROWTH
