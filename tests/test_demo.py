"""`python -m tasks FOLDER` on folders of real files."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from celery import Celery

from jobhandle_celery import Job, JobRecord, Jobs
from tasks.demo.manifest import format_line
from tasks.demo.worker import Worker
from tests.demo import Demo
from tests.reaper import Reaper
from tests.workers import ROOT, WorkerProcess

STRANGE = [
    b"plain",
    b"with space",
    b"new\nline",
    b"carriage\rreturn",
    b"back\\slash",
    b"-leading",
    b"not \xff utf-8 \xc3",
    "\N{SNOWMAN}".encode(),
    b"sub/f\nolder/file",
]

Start = Callable[..., Demo]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The current directory of the runs."""
    path = tmp_path / "here"
    path.mkdir()
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "the folder"
    path.mkdir()
    return path


@pytest.fixture
def demo(here: Path, reaper: Reaper) -> Iterator[Start]:
    runs: list[Demo] = []

    def start(*arguments: object, held: bool = False) -> Demo:
        runs.append(Demo(here, reaper, *arguments, held=held))
        return runs[-1]

    yield start
    for run in runs:
        run.discard()


def write(folder: Path, name: bytes, content: bytes = b"content") -> Path:
    path = folder / os.fsdecode(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def image(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (300, 300), "red").save(path)


def sha256sum(folder: Path, manifest: Path | None = None) -> list[str]:
    """Check a manifest with the real sha256sum, and return its lines."""
    manifest = manifest or folder / "manifest-sha256.txt"
    checker = shutil.which("sha256sum") or shutil.which("gsha256sum")
    if checker is None:
        pytest.skip("no sha256sum here")
    subprocess.run([checker, "--strict", "--quiet", "-c", str(manifest)], cwd=folder, check=True, timeout=60)
    return manifest.read_text(errors="surrogateescape").splitlines()


def rows(here: Path, url: str | None = None) -> list[JobRecord]:
    """Return all jobs, with the cancelled one."""
    jobs = Jobs(Celery(set_as_current=False), url or f"sqlite:///{here}/.jobhandle/jobs.sqlite3")
    try:
        return jobs.find(limit=10_000)
    finally:
        jobs.close()


def started(jobs: list[JobRecord]) -> int:
    """Return how many tasks were started."""
    return sum(job.attempt for job in jobs)


def test_manifest_is_written_and_updated_by_the_next_run(demo: Start, here: Path, folder: Path) -> None:
    for name in STRANGE:
        write(folder, name)
    image(folder / "a.png")
    write(folder, b".jobhandle/passed over")
    (folder / "link").symlink_to(__file__)
    (folder / "folder link").symlink_to(ROOT)
    os.mkfifo(folder / "pipe")

    first = demo(folder)

    assert first.end() == 0, first.output
    assert len(sha256sum(folder)) == len(STRANGE) + 1
    assert re.search(r"^Finished +10 +1$", first.output, re.MULTILINE)
    assert "The cancel held: job 1 was cancelled before the worker started" in first.output
    assert "it is Cancelled and never ran" in first.output
    assert "jobs show 1" in first.output
    assert started(rows(here)) == 11
    assert len(list((here / ".jobhandle/thumbnails").iterdir())) == 1

    second = demo(folder)

    assert second.end() == 0, second.output
    assert "0 jobs to run" in second.output
    assert len(rows(here)) == 12

    write(folder, b"plain", b"changed")
    write(folder, b"new")
    third = demo(folder)

    assert third.end() == 0, third.output
    assert "2 jobs to run" in third.output
    assert started(rows(here)) == 13
    assert len(sha256sum(folder)) == 11


def test_demo_runs_on_postgresql_and_redis(
    demo: Start, here: Path, folder: Path, empty_postgresql_url: str, redis_url: str
) -> None:
    for name in STRANGE:
        write(folder, name)
    manifest = here / "manifest"

    run = demo(
        folder, "--database-url", empty_postgresql_url, "--broker-url", redis_url, "--manifest", manifest
    )

    assert run.end() == 0, run.output
    assert len(sha256sum(folder, manifest)) == len(STRANGE)
    assert started(rows(here, empty_postgresql_url)) == len(STRANGE)
    assert not (folder / "manifest-sha256.txt").exists()
    assert not (here / ".jobhandle/messages").exists()


def test_unreadable_files_end_in_error_and_the_others_finish(demo: Start, here: Path, folder: Path) -> None:
    write(folder, b"bad.png", b"no image")
    write(folder, b"good")
    gone, replaced, locked = (write(folder, name) for name in (b"gone \xff", b"replaced", b"locked"))
    run = demo(folder, held=True)
    run.wait_for("starting a Celery worker")  # the scan is done
    gone.unlink()
    replaced.unlink()
    os.mkfifo(replaced)
    locked.chmod(0)
    run.release_worker()

    assert run.end() == 1

    root = os.geteuid() == 0  # root can read everything
    assert len(sha256sum(folder)) == (3 if root else 2)
    errors = {Path(job.args[0]).name: job.message for job in rows(here) if job.status == "Error"}
    assert len(errors) == (3 if root else 4)
    assert "No such file" in errors[gone.name]
    assert "not a regular file" in errors[replaced.name]
    assert "not an image" in errors["bad.png"]
    assert "Permission denied" in errors.get("locked", "Permission denied")
    assert "gone \\udcff: FileNotFoundError" in run.output


def write_many(folder: Path, number: int = 50) -> None:
    for index in range(number):
        write(folder, f"{index:04}".encode(), os.urandom(100))


def endless(folder: Path) -> Path:
    """Add a file whose checksum takes minutes: the run cannot end before the test interrupts it."""
    path = folder / "endless"
    with path.open("wb") as file:
        file.truncate(10**12)  # sparse
    return path


def wait_for_the_middle(run: Demo, total: int) -> None:
    """Wait until some files are finished and `endless` is being read."""
    run.wait_for(rf"\n[1-9]\d* of {total} jobs")
    run.wait_for("endless: .* MB")


def test_ctrl_c_keeps_the_jobs_and_the_same_command_resumes(demo: Start, here: Path, folder: Path) -> None:
    write_many(folder)
    huge = endless(folder)
    first = demo(folder)
    wait_for_the_middle(first, 51)
    first.interrupt()
    first.wait_for("stopping")
    os.truncate(huge, 0)  # its task ends

    assert first.end() == 130
    assert "the same command resumes" in first.output
    done = [job for job in rows(here) if job.status == "Finished"]
    assert 0 < len(done) <= 50
    assert not [job for job in rows(here) if job.status == "Running"]

    huge.unlink()
    second = demo(folder)

    assert second.end() == 0, second.output
    assert len(sha256sum(folder)) == 50
    # No other file was read twice.
    assert started([job for job in rows(here) if "endless" not in job.message]) == 50


@pytest.mark.faults
def test_run_fails_when_its_worker_dies_and_the_next_resumes(demo: Start, here: Path, folder: Path) -> None:
    write_many(folder)
    huge = endless(folder)
    first = demo(folder)
    wait_for_the_middle(first, 51)
    worker = first.worker()
    children = worker.children()
    worker.kill()

    assert first.end() == 1
    assert "the worker has exited (signal 9" in first.output
    psutil.wait_procs(children, timeout=10)

    huge.unlink()
    assert demo(folder).end() == 0
    assert len(sha256sum(folder)) == 50


def test_worker_that_does_not_start_is_reported_with_its_log(demo: Start, folder: Path) -> None:
    write(folder, b"file")
    run = demo(folder, held=True)
    run.wait_for("starting a Celery worker")
    run.worker().kill()
    assert run.end() == 1
    assert re.search(r"worker has exited \(signal 9.*; the end of .*worker.log", run.output)


def test_worker_that_ignores_a_shutdown_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tasks.demo.worker.COLD_STOP_TIMEOUT", 0.05)
    before = psutil.Process().children()
    worker = Worker(tmp_path / "log", concurrency=1)
    (process,) = set(psutil.Process().children()).difference(before)
    process.suspend()  # only SIGKILL has an effect

    worker.stop(timeout=0.05)

    assert not process.is_running()


@pytest.mark.faults
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs PR_SET_PDEATHSIG")
def test_killed_run_leaves_no_worker_behind(demo: Start, folder: Path) -> None:
    huge = endless(folder)
    run = demo(folder)
    run.wait_for("endless: .* MB")
    worker = run.worker()
    run.process.kill()
    os.truncate(huge, 0)  # the worker ends after its task
    worker.wait(20)


@pytest.mark.faults
def test_second_ctrl_c_gives_the_running_jobs_back(demo: Start, here: Path, folder: Path) -> None:
    endless(folder)
    run = demo(folder)
    run.wait_for("endless: .* MB")
    run.interrupt()
    run.wait_for("stopping")
    run.interrupt()

    assert run.end() == 130
    (job,) = [job for job in rows(here) if job.message.startswith("endless")]
    assert job.status in ("Requeued", "Queued")


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["{folder}/missing"], 2, "no such folder"),
        (["{folder}/file"], 2, "not a folder"),
        (["{folder}/empty"], 1, "has no regular files"),
        (["{folder}", "--manifest={folder}/no/such"], 2, "cannot be written there"),
        (["{folder}", "--concurrency=0"], 2, "at least 1"),
        (["{folder}", "--database-url=nonsense"], 2, "Not a database URL"),
        (["{folder}", "--broker-url=nonsense://"], 2, "No such transport"),
        (["{folder}", "--broker-url=redis://127.0.0.1:1"], 1, "is unavailable"),
        (["{folder}", "--database-url=postgresql://127.0.0.1:1/x"], 1, "did not answer"),
        (["--help"], 0, "After Ctrl-C the jobs stay"),
        ([], 2, "FOLDER"),
    ],
)
def test_wrong_usage_is_reported_in_one_line(
    demo: Start, folder: Path, arguments: list[str], code: int, error: str
) -> None:
    write(folder, b"file")
    (folder / "empty").mkdir()

    run = demo(*(argument.format(folder=folder) for argument in arguments))

    assert run.end() == code, run.output
    assert error in " ".join(run.output.split())


def test_manifest_line_has_the_bytes_of_the_name() -> None:
    assert format_line("00", "a b") == b"00  a b\n"
    assert format_line("00", os.fsdecode(b"a\n\\\r\xff")) == b"\\00  a\\n\\\\\\r\xff\n"


def test_worker_of_the_app_creates_the_tables(
    start_worker: Callable[..., WorkerProcess], empty_sqlite_url: str, redis_url: str, tmp_path: Path
) -> None:
    start_worker(
        "tasks", environment={"JOBHANDLE_DATABASE_URL": empty_sqlite_url, "JOBHANDLE_BROKER_URL": redis_url}
    )
    jobs = Jobs(Celery("client", broker=redis_url, set_as_current=False), empty_sqlite_url)
    (tmp_path / "file").write_bytes(b"content")
    handle = jobs.handle()
    handle.submit(Job(task="tasks.checksum", args=[str(tmp_path / "file")]))
    assert handle.result(20)["bytes"] == 7
    jobs.close()
