"""The three tasks of `tasks/`: each by itself, and in a real worker where a process matters."""

import hashlib
import os
import signal
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery import Celery

from jobhandle_celery import Job, JobHandle, Jobs, JobStatus
from tests.conftest import WORKERS
from tests.databases import SqliteFiles
from tests.reaper import Reaper
from tests.support import eventually
from tests.workers import WorkerProcess

Submit = Callable[..., JobHandle]


@pytest.fixture(scope="module", autouse=True)
def _configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Configure the app of this process before anything does: nothing is to appear in the current folder."""
    folder = tmp_path_factory.mktemp("tasks-app")
    (folder / "scripts").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOBHANDLE_DATABASE_URL", f"sqlite:///{folder}/jobs.sqlite3")
        patch.setenv("JOBHANDLE_BROKER_URL", "memory://")
        from tasks import app

        assert app.conf.broker_url == "memory://"
        yield


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder whose programs may be run by a task that is called in this process."""
    from tasks import app

    folder = tmp_path / "scripts"
    folder.mkdir()
    monkeypatch.setitem(app.conf, "scripts_folder", str(folder))
    return folder


def program(folder: Path, text: str, name: str = "program") -> str:
    """Write a program, and return the name by which it is run."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return name


def checksum(path: object, *args: Any) -> Any:
    from tasks.checksum import checksum

    return checksum(os.fsdecode(path), *args)  # type: ignore[arg-type]


def thumbnail(path: object, *args: Any, **kwargs: Any) -> Any:
    from tasks.thumbnail import thumbnail

    return thumbnail(str(path), *args, **kwargs)


def run_script(*args: Any, **kwargs: Any) -> Any:
    from tasks.script import run_script

    return run_script(*args, **kwargs)


# Checksums.


@pytest.mark.parametrize("algorithm", ["sha256", "md5", "blake2b"])
def test_a_checksum_is_the_digest_of_all_bytes(tmp_path: Path, algorithm: str) -> None:
    content = os.urandom(3_000_001)
    (tmp_path / "file").write_bytes(content)

    assert checksum(tmp_path / "file", algorithm) == {
        "path": str(tmp_path / "file"),
        "bytes": 3_000_001,
        "digest": hashlib.new(algorithm, content).hexdigest(),
    }


def test_a_checksum_says_why_there_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="accepted: blake2b"):
        checksum(tmp_path, "shake_128")
    with pytest.raises(ValueError, match="not a regular file"):
        checksum(tmp_path)
    with pytest.raises(ValueError, match="not a regular file"):
        checksum(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match="gone"):
        checksum(tmp_path / "gone")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_a_file_that_cannot_be_read_is_named() -> None:
    # Nobody, root neither, reads the first page of a process's memory.
    with pytest.raises(OSError, match="'/proc/self/mem'"):
        checksum("/proc/self/mem")


def test_a_file_that_changes_while_it_is_read_has_no_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.checksum import ChangedError

    path = tmp_path / "file"
    path.write_bytes(bytes(10))

    def write(*_: Any) -> None:  # between two chunks, as somebody else would
        path.write_bytes(bytes(11))

    monkeypatch.setattr("tasks.checksum.Report", lambda: write)
    with pytest.raises(ChangedError, match="written to while"):
        checksum(path)


# Thumbnails.


def image(path: Path, size: tuple[int, int] = (400, 200), mode: str = "RGB", **options: Any) -> Path:
    from PIL import Image

    Image.new(mode, size).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "mode"), [("a.png", "P"), ("a.jpg", "CMYK"), ("a.gif", "RGB"), ("a.tif", "I;16")]
)
def test_a_thumbnail_fits_into_its_square(tmp_path: Path, name: str, mode: str) -> None:
    from PIL import Image

    target = tmp_path / "small.png"

    made = thumbnail(image(tmp_path / name, mode=mode), size=100, destination=str(target))

    assert made == {"path": str(target), "width": 100, "height": 50}
    with Image.open(target) as small:
        assert (small.format, small.size) == ("PNG", (100, 50))
    assert sorted(os.listdir(tmp_path)) == sorted([name, "small.png"])


def test_a_thumbnail_lies_beside_its_image_if_nothing_else_is_said(tmp_path: Path) -> None:
    made = thumbnail(image(tmp_path / "a.png", (10, 20)))

    assert made == {"path": str(tmp_path / "a.png.thumbnail.png"), "width": 10, "height": 20}


def test_a_photograph_is_upright(tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    assert thumbnail(image(tmp_path / "a.jpg", exif=exif), 100)["height"] == 100


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image"),
        (b"words", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (png_header(100, 100), "truncated"),
        (png_header(10_000, 10_000), "too many"),
        (png_header(60_000, 60_000), "decompression bomb"),
    ],
    ids=["empty", "words", "postscript", "truncated", "large", "bomb"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bad_image_is_a_clear_error(tmp_path: Path, content: bytes, reason: str) -> None:
    from tasks.thumbnail import ImageError

    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ImageError, match=rf"no thumbnail of '.*bad.png': .*{reason}"):
        thumbnail(tmp_path / "bad.png")
    assert os.listdir(tmp_path) == ["bad.png"]


def test_a_thumbnail_of_no_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 to 4096"):
        thumbnail(tmp_path / "a.png", size=0)


# Scripts.


def test_a_script_gets_its_arguments_and_no_shell(scripts: Path) -> None:
    name = program(scripts, 'printf "%s|" "$@"; echo; echo "  "')

    made = run_script(name, ["$HOME", "a b", "*", ";ls", os.fsdecode(b"\xff")])

    assert made == {"exit_code": 0, "output": "$HOME|a b|*|;ls|\\xff|"}


def test_a_script_sees_bytes_that_are_not_utf8(scripts: Path, tmp_path: Path) -> None:
    strange = tmp_path / os.fsdecode(b"f\xffle")
    run_script(program(scripts, 'touch "$1"'), [str(strange)])
    assert strange.exists()


def test_a_script_finds_no_input_and_none_of_our_urls(scripts: Path) -> None:
    assert run_script(program(scripts, "env | grep -c JOBHANDLE_; cat; echo end"))["output"] == "end"


@pytest.mark.parametrize("path", ["../outside", "link", "gone", "", ".", "/bin/sh", "a\0b", "folder"])
def test_nothing_outside_the_folder_is_run(scripts: Path, path: str) -> None:
    program(scripts.parent, "touch ran", "outside")
    (scripts / "link").symlink_to("../outside")
    (scripts / "folder").mkdir()
    with pytest.raises(ValueError, match="is not a program of the folder"):
        run_script(path)
    assert not (scripts.parent / "ran").exists()


def test_what_cannot_be_run_is_said(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import app
    from tasks.script import ScriptError

    (scripts / "text").write_text("echo")
    with pytest.raises(ValueError, match="not executable"):
        run_script("text")
    (scripts / "text").chmod(0o755)
    with pytest.raises(ScriptError, match=r"exit code 126: .*Exec format error"):
        run_script("text")
    with pytest.raises(ValueError, match="list of text"):
        run_script("text", "-rf")
    monkeypatch.setitem(app.conf, "scripts_folder", None)
    with pytest.raises(ValueError, match="JOBHANDLE_SCRIPTS"):
        run_script("text")


def test_a_bad_end_carries_the_exit_code_and_the_end_of_stderr(scripts: Path) -> None:
    from tasks.script import ScriptError

    noisy = program(scripts, "yes complaint | head -n 100000 >&2; echo the reason >&2; exit 3")
    with pytest.raises(ScriptError, match=r"'program' ended with exit code 3: (?s:.)*the reason$") as caught:
        run_script(noisy)
    assert len(str(caught.value)) < 2_200
    with pytest.raises(ScriptError, match=r"ended by signal 9 \(Killed\)"):
        run_script(program(scripts, "kill -9 $$"))


def test_a_long_line_is_kept_in_part(scripts: Path) -> None:
    output = run_script(program(scripts, "head -c 3000000 /dev/zero | tr '\\0' x"))["output"]
    assert output == "x" * 10_000


def test_a_time_limit_ends_the_whole_group(scripts: Path, tmp_path: Path) -> None:
    from tasks.script import ScriptTimeoutError

    name = program(scripts, f"{BRANCHES.format(tmp_path)} echo so far >&2; wait")
    with pytest.raises(ScriptTimeoutError, match=r"within 0\.5 s, and ended: so far"):
        run_script(name, timeout=0.5)
    assert_all_gone(tmp_path, 2)


def test_what_a_script_leaves_behind_ends_with_it(scripts: Path, tmp_path: Path) -> None:
    run_script(program(scripts, BRANCHES.format(tmp_path)))
    assert_all_gone(tmp_path, 2)


BRANCHES = """
(sleep 300 & echo $! > {0}/1.pid; wait) &
echo $! > {0}/2.pid
until [ -s {0}/1.pid ]; do sleep 0.01; done
"""
"""Starts a child and a grandchild."""


def assert_all_gone(folder: Path, processes: int) -> None:
    pids = [int(path.read_text()) for path in folder.glob("*.pid")]
    assert len(pids) == processes
    eventually(lambda: not any(is_alive(pid) for pid in pids), message="what the program started")


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


# In a real worker.


@pytest.fixture(scope="module")
def worker_scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scripts")


@pytest.fixture(scope="module")
def worker(
    sqlite_files: SqliteFiles,
    redis_database_url: str,
    reaper: Reaper,
    worker_scripts: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[WorkerProcess, Jobs]]:
    """One worker for all of these tests, and the jobs that it runs."""
    folder = tmp_path_factory.mktemp("worker")
    url = sqlite_files.create(folder / "jobs.sqlite3")
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
    request.node.stash[WORKERS] = [worker[0]]  # whose log is shown if the test fails

    def submit(task: str, *args: Any, **options: Any) -> JobHandle:
        handle = worker[1].handle()
        handle.submit(Job(task=f"tasks.{task}", args=args, **options))
        return handle

    return submit


def test_names_that_are_not_utf8_survive_the_way(submit: Submit, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"a\xff\n b")
    path.write_bytes(b"content")
    assert submit("checksum", str(path)).result(20)["path"] == str(path)
    gone = submit("checksum", str(path) + "x")
    assert gone.wait(20) is JobStatus.ERROR
    assert "FileNotFoundError" in gone.job_message()
    assert "a\\udcff" in gone.job_message()


def test_a_checksum_says_how_far_it_is_and_stops_when_cancelled(submit: Submit, tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(10**12)  # sparse: no disk holds it, and no worker gets to its end
    handle = submit("checksum", str(tmp_path / "huge"))

    progress = eventually(lambda: handle.get_job().progress)
    assert progress is not None
    assert progress.total == 10**12
    assert 0 < progress.current < 10**12
    eventually(lambda: "huge: " in handle.job_message() and "of 1,000,000.0 MB" in handle.job_message())

    assert handle.cancel_job() is JobStatus.RUNNING
    assert handle.wait(10) is JobStatus.CANCELLED


def test_a_bad_image_ends_in_error_and_the_next_job_runs(submit: Submit, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"words")
    bad = submit("thumbnail", str(tmp_path / "bad.png"))
    good = submit("thumbnail", str(image(tmp_path / "good.png")), kwargs={"size": 16})
    assert bad.wait(20) is JobStatus.ERROR
    assert bad.job_message().startswith("ImageError: no thumbnail of")
    assert good.result(20)["width"] == 16


def test_the_last_line_of_a_script_is_its_message_while_it_runs_and_afterwards(
    submit: Submit, worker_scripts: Path, tmp_path: Path
) -> None:
    wait = f"until [ -e {tmp_path}/go ]; do sleep 0.05; done"
    handle = submit("run_script", program(worker_scripts, f"echo first; echo second; {wait}; echo third"))
    eventually(lambda: handle.job_message() == "second")
    (tmp_path / "go").touch()
    assert handle.result(20) == {"exit_code": 0, "output": "third"}
    assert handle.job_message() == "third"


def stop_by_cancel(handle: JobHandle) -> None:
    handle.cancel_job()


def stop_by_termination(handle: JobHandle) -> None:
    handle.cancel_job(terminate=True)


def kill_the_child(handle: JobHandle) -> None:
    # The pool's process, which is the parent of the leash.
    leash = psutil.Process(int((FOLDER[0] / "3.pid").read_text())).parent()
    assert leash is not None
    child = leash.parent()
    assert child is not None
    os.kill(child.pid, signal.SIGKILL)


FOLDER: list[Path] = []


@pytest.mark.parametrize(
    ("stop", "options", "status", "message"),
    [
        (stop_by_cancel, {}, "Cancelled", ""),
        # The body hears of the stop as well, and may be faster than its worker's signal.
        (stop_by_termination, {}, "Cancelled", ""),
        (kill_the_child, {}, "Error", "lost"),
        (None, {"soft_time_limit": 2.0}, "Error", "soft time limit"),
        (None, {"time_limit": 2.0}, "Error", "time limit"),
        (None, {"kwargs": {"timeout": 2.0}}, "Error", "not over within 2 s"),
    ],
    ids=["cancel", "terminate", "killed child", "soft limit", "hard limit", "timeout"],
)
def test_whatever_ends_the_body_ends_all_that_its_program_started(
    submit: Submit,
    worker_scripts: Path,
    tmp_path: Path,
    stop: Callable[[JobHandle], None] | None,
    options: dict[str, Any],
    status: str,
    message: str,
) -> None:
    FOLDER[:] = [tmp_path]
    name = program(worker_scripts, f"echo $$ > {tmp_path}/3.pid\n{BRANCHES.format(tmp_path)}\nwait")
    handle = submit("run_script", name, **options)
    eventually(lambda: len([path for path in tmp_path.glob("*.pid") if path.read_text()]) == 3)
    if stop is not None:
        stop(handle)
    assert handle.wait(30) == status
    assert message in handle.job_message()
    assert_all_gone(tmp_path, 3)
