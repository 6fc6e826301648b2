"""Bodies that take more memory than there is: they end as lost or failed, their neighbours as they should."""

import signal
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.chance import scaled
from tests.fire.crowd import Crowd
from tests.fire.worker_fates import account
from tests.support import eventually
from tests.worker.site import NewSite
from tests.workers import WorkerProcess

pytestmark = [pytest.mark.fire, pytest.mark.slow, pytest.mark.timeout(300)]

BODIES = "tests.fire.worker_bodies:app"
SETTINGS = {"jobhandle_lease": 2, "jobhandle_patience": 2}
PLACES = (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max"))
LIMIT = 500 * 2**20
"""Bytes for a worker and its children together."""


class MemoryLimit:
    """A control group of the kernel's, where we may make one; without it nobody is limited."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        for root, file in (
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", "memory.max"),
        ):
            folder = Path(root) / f"jobhandle-test-{uuid.uuid4()}"
            with suppress(OSError):
                folder.mkdir()
                try:
                    (folder / file).write_text(str(LIMIT))
                except OSError:
                    folder.rmdir()
                    raise
                self.folder = folder
                return

    def limit(self, worker: WorkerProcess) -> None:
        for pid in (worker.pid, *worker.children()):
            if self.folder is not None:
                (self.folder / "cgroup.procs").write_text(str(pid))

    def close(self) -> None:
        if self.folder is not None:
            folder = self.folder
            eventually(lambda: not (folder / "cgroup.procs").read_text())
            folder.rmdir()


@pytest.fixture
def memory_limit() -> Iterator[MemoryLimit]:
    limit = MemoryLimit()
    yield limit
    limit.close()


def test_what_the_kernel_kills_for_its_memory_takes_nobody_with_it(
    memory_limit: MemoryLimit, new_site: NewSite
) -> None:
    site = new_site(settings=SETTINGS)
    crowd = Crowd(site)
    worker = site.start(BODIES, concurrency=3)
    memory_limit.limit(worker)
    healthy = crowd.submit_mixed(scaled(30), 0.1)
    fat = crowd.submit([crowd.job("swell", max_attempts=2) for _ in range(3)])
    healthy += crowd.submit_mixed(scaled(30), 0.1)

    crowd.settle()

    rows = crowd.audit(lost_before_body=True)
    account(crowd, rows)
    for job_id in fat:
        error = rows[job_id].error
        assert error is not None
        assert (error.kind, error.type, rows[job_id].attempt) == ("system", "WorkerLostError", 2)
        assert str(signal.Signals.SIGKILL.value) in error.message
    assert {error.kind for job_id in healthy if (error := rows[job_id].error)} == {"task"}
    assert worker.is_running()


def test_a_memory_error_ends_its_own_body_alone(new_site: NewSite) -> None:
    """Celery ends the worker for it; whatever starts workers starts another."""
    site = new_site(settings=SETTINGS)
    crowd = Crowd(site)
    worker = site.start(BODIES, concurrency=3)
    crowd.submit_mixed(scaled(30), 0.3)
    [fat] = crowd.submit([crowd.job("hog")])
    eventually(lambda: not worker.is_running(), 60)
    site.start(BODIES, concurrency=3)

    crowd.settle()

    rows = crowd.audit(lost_before_body=True)
    error = rows.pop(fat).error
    assert error is not None
    assert (error.kind, error.type) == ("task", "MemoryError")
    tally = account(crowd, rows)
    assert not tally["lost"], tally
