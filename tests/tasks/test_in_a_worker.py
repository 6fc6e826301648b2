"""The tasks of `tasks/` in a real worker."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery import Celery

from jobhandle_celery import Job, JobHandle, Jobs, JobStatus
from tests.databases import SqliteFiles
from tests.reaper import Reaper
from tests.support import eventually
from tests.tasks.images import image
from tests.tasks.programs import BRANCHES, assert_all_gone, program
from tests.workers import WORKERS, WorkerProcess

Submit = Callable[..., JobHandle]


@pytest.fixture(scope="module")
def worker_scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scripts")


@pytest.fixture(scope="module")
def worker(
    sqlite_databases: SqliteFiles,
    redis_database_url: str,
    reaper: Reaper,
    worker_scripts: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[WorkerProcess, Jobs]]:
    """One worker for all tests, and its jobs."""
    folder = tmp_path_factory.mktemp("worker")
    url = sqlite_databases.create(folder / "jobs.sqlite3")
    worker = WorkerProcess(
        "tasks",
        folder=folder,
        reaper=reaper,
        environment={
            "JOBHANDLE_DATABASE_URL": url,
            "JOBHANDLE_BROKER_URL": redis_database_url,
            "JOBHANDLE_SCRIPTS": str(worker_scripts),
        },
    )
    worker.wait_until_ready()
    jobs = Jobs(Celery("client", broker=redis_database_url, set_as_current=False), url)
    yield worker, jobs
    jobs.close()
    worker.end()


@pytest.fixture
def submit(worker: tuple[WorkerProcess, Jobs], request: pytest.FixtureRequest) -> Submit:
    request.node.stash[WORKERS] = [worker[0]]  # its log is shown if the test fails

    def submit(task: str, *args: Any, **options: Any) -> JobHandle:
        handle = worker[1].handle()
        handle.submit(Job(task=f"tasks.{task}", args=args, **options))
        return handle

    return submit


def test_names_that_are_not_utf8_are_preserved(submit: Submit, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"a\xff\n b")
    path.write_bytes(b"content")
    assert submit("checksum", str(path)).result(20)["path"] == str(path)
    gone = submit("checksum", str(path) + "x")
    assert gone.wait(20) is JobStatus.ERROR
    assert "FileNotFoundError" in gone.job_message()
    assert "a\\udcff" in gone.job_message()


def test_checksum_reports_progress_and_stops_on_cancel(submit: Submit, tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(10**12)  # sparse; too large to be read to its end
    handle = submit("checksum", str(tmp_path / "huge"))

    progress = eventually(lambda: handle.get_job().progress)
    assert progress is not None
    assert progress.total == 10**12
    assert 0 < progress.current < 10**12
    eventually(lambda: "huge: " in handle.job_message() and "of 1,000,000.0 MB" in handle.job_message())

    assert handle.cancel_job() is JobStatus.RUNNING
    assert handle.wait(10) is JobStatus.CANCELLED


def test_invalid_image_ends_in_error_and_the_next_job_runs(submit: Submit, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"words")
    bad = submit("thumbnail", str(tmp_path / "bad.png"))
    good = submit("thumbnail", str(image(tmp_path / "good.png")), kwargs={"size": 16})
    assert bad.wait(20) is JobStatus.ERROR
    assert bad.job_message().startswith("ImageError: no thumbnail of")
    assert good.result(20)["width"] == 16


def test_last_line_of_a_script_is_the_message(submit: Submit, worker_scripts: Path, tmp_path: Path) -> None:
    wait = f"until [ -e {tmp_path}/go ]; do sleep 0.05; done"
    handle = submit("run_script", program(worker_scripts, f"echo first; echo second; {wait}; echo third"))
    eventually(lambda: handle.job_message() == "second")
    (tmp_path / "go").touch()
    assert handle.result(20) == {"exit_code": 0, "output": "third"}
    assert handle.job_message() == "third"


def stop_by_cancel(handle: JobHandle, folder: Path) -> None:
    handle.cancel_job()


def stop_by_termination(handle: JobHandle, folder: Path) -> None:
    handle.cancel_job(terminate=True)


def kill_the_child(handle: JobHandle, folder: Path) -> None:
    # The pool process is the parent of the supervisor.
    supervisor = psutil.Process(int((folder / "3.pid").read_text())).parent()
    assert supervisor is not None
    child = supervisor.parent()
    assert child is not None
    os.kill(child.pid, signal.SIGKILL)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("stop", "options", "status", "message"),
    [
        (stop_by_cancel, {}, "Cancelled", ""),
        # The task polls for the stop as well, and may be faster than the signal.
        (stop_by_termination, {}, "Cancelled", ""),
        (kill_the_child, {}, "Error", "lost"),
        (None, {"soft_time_limit": 2.0}, "Error", "soft time limit"),
        (None, {"time_limit": 2.0}, "Error", "time limit"),
        (None, {"kwargs": {"timeout": 2.0}}, "Error", "ended by its timeout of 2 s"),
    ],
    ids=["cancel", "terminate", "killed child", "soft limit", "hard limit", "timeout"],
)
def test_end_of_the_task_ends_all_processes_of_its_program(
    submit: Submit,
    worker_scripts: Path,
    tmp_path: Path,
    stop: Callable[[JobHandle, Path], None] | None,
    options: dict[str, Any],
    status: str,
    message: str,
) -> None:
    name = program(worker_scripts, f"echo $$ > {tmp_path}/3.pid\n{BRANCHES.format(tmp_path)}\nwait")
    handle = submit("run_script", name, **options)
    eventually(lambda: len([path for path in tmp_path.glob("*.pid") if path.read_text()]) == 3)
    if stop is not None:
        stop(handle, tmp_path)
    assert handle.wait(30) == status
    assert message in handle.job_message()
    assert_all_gone(tmp_path, 3)
