"""Programs of `tasks.run_script`: none runs beside its successor, however its worker ended."""

import fcntl
import signal
import sys
from pathlib import Path

import psutil
import pytest

from jobhandle_celery import Job, JobStatus
from tests.apps import lines_of
from tests.faults.worker_faults import kill_a_child, one_of, run_under_faults, send
from tests.faults.workload import WorkerSupervisor, Workload
from tests.rng import scaled, stretched
from tests.support import eventually
from tests.worker.cluster import Cluster, NewCluster
from tests.workers import WorkerProcess

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(stretched(900))]

PROGRAM = """#!{python} -IS
import fcntl, os, signal, sys, time
marks, lock, seconds, deaf = sys.argv[1:]

def mark(what):
    line = f"{{what}} {{lock}} {{os.getpid()}} {{time.time()}}\\n"
    os.write(os.open(marks, os.O_WRONLY | os.O_APPEND | os.O_CREAT), line.encode())

if deaf == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
held = os.open(lock, os.O_WRONLY | os.O_CREAT)
try:
    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    mark("beside")
    sys.exit("another lives")
mark("begun")
if not os.fork():
    time.sleep(3600)  # what it has started itself holds the lock as well
time.sleep(float(seconds))
mark("ended")
"""
"""It holds a lock while it or a process of its own lives, and reports if another holds it."""

LEASE = 6
"""Seconds. A program that ignores SIGTERM is killed after 3, see `tasks.script.GRACE`."""


class Scripts:
    """Many jobs that run the program, and their workers."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        program = folder / "scripts" / "program"
        program.parent.mkdir()
        program.write_text(PROGRAM.format(python=sys.executable))
        program.chmod(0o755)
        self.workload = Workload(cluster)
        self.folder = folder
        self._environment = {
            "JOBHANDLE_DATABASE_URL": cluster.database_url,
            "JOBHANDLE_BROKER_URL": cluster.broker_url,
            "JOBHANDLE_SCRIPTS": str(program.parent),
        }

    def start(self) -> WorkerProcess:
        return self.workload.cluster.start(
            "tests.faults.scripts_app:app", ready=False, concurrency=4, environment=self._environment
        )

    def submit(self, count: int, seconds: float, deaf: str) -> list[int]:
        first = len(self.workload.ids)
        locks = [str(self.folder / f"lock-{number}") for number in range(first, first + count)]
        return self.workload.submit(
            [
                Job(
                    task="tasks.run_script",
                    args=("program", (str(self.workload.path), lock, str(seconds), deaf)),
                    max_attempts=10**6,
                )
                for lock in locks
            ]
        )

    def audit(self) -> None:
        details = lines_of(self.workload.path)
        assert [line for line in details if line.startswith("beside")] == []
        for row in self.workload.rows().values():
            lock = row.args[1][1]
            assert row.status in (JobStatus.FINISHED, JobStatus.CANCELLED), row
            assert row.attempt is not None
            assert details.count(f"begun {lock}") <= row.attempt, row
            assert f"ended {lock}" in details or row.status is JobStatus.CANCELLED, row
        locks = list(self.folder.glob("lock-*"))
        eventually(lambda: all(map(is_free, locks)), message="programs still run after their worker")

    def holder(self, job_id: int) -> psutil.Process:
        """Return the pool process that runs this job's program, once the program runs."""
        lock = self.workload.rows()[job_id].args[1][1]
        eventually(lambda: f"begun {lock}" in lines_of(self.workload.path))
        lines = map(str.split, self.workload.path.read_text().splitlines())
        [pid] = [int(pid) for what, of, pid, _ in lines if (what, of) == ("begun", lock)]
        leash = psutil.Process(pid).parent()
        return psutil.Process(leash.ppid())


@pytest.fixture
def scripts(new_cluster: NewCluster, tmp_path: Path) -> Scripts:
    return Scripts(new_cluster(settings={"jobhandle_lease": LEASE, "jobhandle_republish_after": 2}), tmp_path)


def test_program_does_not_live_on_beside_its_successor(scripts: Scripts) -> None:
    """Programs that ignore SIGTERM would outlive their worker's lease."""
    supervisor = WorkerSupervisor(scripts.start, 2)

    def submit_more() -> None:
        scripts.submit(6, 0.5, "listening")
        scripts.submit(4, LEASE + 1, "deaf")

    run_under_faults(
        scripts.workload,
        supervisor,
        one_of(send(signal.SIGKILL), send(signal.SIGQUIT), kill_a_child),
        (0.2, 0.8),
        submit_more=submit_more,
        reasons=["the worker % was lost", "cut it off", "the process that ran it was lost"],
        jobs=scaled(20),
    )

    scripts.audit()


def test_stubborn_program_of_a_killed_child_ends_before_the_next(scripts: Scripts) -> None:
    """The worker may notice the dead child at once; and no other message delays the successor."""
    scripts.start().wait_until_ready()
    for _ in range(3):
        [job_id] = scripts.submit(1, 4, "deaf")
        holder = scripts.holder(job_id)

        holder.kill()

        holder.wait(30)  # until its parent has reaped it
    scripts.workload.wait_until_final()
    assert {row.attempt for row in scripts.workload.rows().values()} == {2}
    scripts.audit()


def is_free(lock: Path) -> bool:
    with lock.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
