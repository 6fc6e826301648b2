"""`QueuedMarker` records published jobs a moment later, in batches, by a thread."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy
from billiard.exceptions import SoftTimeLimitExceeded
from sqlalchemy.orm import Session

from jobhandle_celery import Job, JobStatus
from jobhandle_celery.broker.queued_marker import QueuedMarker
from jobhandle_celery.errors import DatabaseUnavailableError
from jobhandle_celery.runtime import runtime_of
from tests.support import a_soft_limit_of, eventually, is_true_in_a_child

ADD = Job(task="tests.add", args=[1, 2])


@pytest.fixture
def jobs(database_url: str, make_jobs_app: Callable[..., Any]) -> Any:
    return make_jobs_app(database_url).jobs


def statuses(database_url: str) -> list[str]:
    """The statuses in the rows, read without the library, which would flush the marker."""
    engine = sqlalchemy.create_engine(database_url)
    with engine.connect() as connection:
        values = connection.exec_driver_sql(
            "SELECT value FROM jobhandle_job JOIN jobhandle_job_status s ON s.id = status_id"
        ).scalars()
        found = list(values)
    engine.dispose()
    return found


def test_queued_is_recorded_without_a_read(jobs: Any, database_url: str) -> None:
    jobs.submit_many([ADD] * 3)
    eventually(lambda: statuses(database_url) == ["Queued"] * 3, message="the record")


def test_read_in_same_process_flushes_the_marker(jobs: Any) -> None:
    handle = jobs.handle()
    for _ in range(20):
        job_id = handle.submit(ADD)
        assert handle.job_status() is JobStatus.QUEUED
        jobs.submit_many([ADD])
        assert jobs.find()[0].status is JobStatus.QUEUED
        assert jobs.attach(job_id).cancel_job() is JobStatus.CANCELLED


def test_marker_is_flushed_at_orderly_exit(database_url: str) -> None:
    program = (
        "import sys; from tests.apps import make_app; from jobhandle_celery import Job\n"
        "app = make_app('memory://', sys.argv[1])\n"
        "app.jobs.submit_many([Job(task='tests.add', args=[1, 2])] * 5)\n"
    )
    subprocess.run([sys.executable, "-c", program, database_url], check=True, timeout=60)
    assert statuses(database_url) == ["Queued"] * 5


class Recorder:
    """Stands in for a store's outbox, and records what was marked by which process."""

    def __init__(self) -> None:
        self.marked: list[tuple[int, list[Any]]] = []
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.fails: Exception | None = None

    def mark_queued(self, sent: Sequence[Any]) -> None:
        assert self.goes_on.wait(30)
        if self.fails:
            raise self.fails
        if sent:
            self.marked.append((os.getpid(), list(sent)))


def marker_of(recorder: Recorder, publish_grace: float = 5) -> Any:
    store: Any = SimpleNamespace(outbox=recorder)
    return QueuedMarker(store, timedelta(seconds=publish_grace))


def writing() -> tuple[Recorder, Any]:
    """Return a marker that writes its first job, a 1, until the recorder goes on."""
    recorder = Recorder()
    marker = marker_of(recorder)
    recorder.goes_on.clear()
    marker.later([1])
    eventually(lambda: not marker._pending, message="the thread takes it")
    return recorder, marker


def test_jobs_gathered_during_a_write_are_written_together() -> None:
    recorder = Recorder()
    marker = marker_of(recorder)
    recorder.goes_on.clear()
    marker.later([0])
    for number in range(1, 2000):
        marker.later([number])
    recorder.goes_on.set()
    marker.flush()
    written = [job for _, jobs in recorder.marked for job in jobs]
    assert written == list(range(2000))
    assert len(recorder.marked) < 100


def test_flush_waits_for_write_in_progress() -> None:
    recorder, marker = writing()
    threading.Timer(0.2, recorder.goes_on.set).start()
    marker.flush()
    assert [jobs for _, jobs in recorder.marked] == [[1]]


def lock_timeout(again: str) -> DatabaseUnavailableError:
    error = DatabaseUnavailableError("locked")
    error.retry = again  # type: ignore[assignment]
    return error


def test_flush_once_leaves_locked_rows_to_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobhandle_celery.broker.queued_marker.DELAY", 0.01)
    recorder = Recorder()
    marker = marker_of(recorder)
    recorder.fails = lock_timeout("after_pause")
    marker.later([1])
    marker.flush_once()
    marker.later([2])
    recorder.fails = None
    eventually(lambda: sorted(job for _, jobs in recorder.marked for job in jobs) == [1, 2])


def test_flush_at_exit_waits_for_locked_rows_with_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobhandle_celery.background.FLUSH_TIMEOUT", 0.1)
    recorder = Recorder()
    marker = marker_of(recorder)
    recorder.fails = lock_timeout("after_pause")
    marker.later([1])
    marker.flush()
    assert recorder.marked == []
    recorder.fails = None
    marker.flush()
    assert [jobs for _, jobs in recorder.marked] == [[1]]


def test_read_does_not_wait_for_locks_of_open_session(
    jobs: Any, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """On SQLite the session's write lock is held by the very thread that reads."""
    engine, handle = sqlalchemy.create_engine(database_url), jobs.handle()
    with Session(engine) as session:
        with jobs._runtime.submitter.queued_marker._working:  # the thread cannot write yet
            [job_id] = jobs.submit_many([ADD])
            handle.submit(ADD, session=session)
        assert handle.attach(job_id) in (JobStatus.SUBMITTED, JobStatus.QUEUED)
        session.commit()
    eventually(lambda: handle.job_status() is JobStatus.QUEUED)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    engine.dispose()


@pytest.mark.parametrize("error", [DatabaseUnavailableError("away"), RuntimeError("a bug")])
def test_thread_survives_a_failed_write(error: Exception) -> None:
    recorder = Recorder()
    marker = marker_of(recorder)
    recorder.fails = error
    marker.later([1])
    marker.flush()
    recorder.fails = None
    marker.later([2])
    eventually(lambda: [jobs for _, jobs in recorder.marked] == [[2]], message="the thread goes on")


def test_time_limit_interrupts_a_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobhandle_celery.broker.queued_marker.DELAY", 60)
    recorder = Recorder()
    marker = marker_of(recorder, publish_grace=3600)
    recorder.goes_on.clear()
    marker.later([1])
    with pytest.raises(SoftTimeLimitExceeded), a_soft_limit_of(0.2):
        marker.flush()  # the thread still gathers, so that this one writes
    recorder.goes_on.set()
    marker.later([2])
    marker.flush()
    assert [jobs for _, jobs in recorder.marked] == [[2]]  # a lost record is harmless


def test_without_a_thread_jobs_are_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    recorder = Recorder()
    marker = marker_of(recorder)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        for number in range(3):
            marker.later([number])
        assert [jobs for _, jobs in recorder.marked] == [[0], [1], [2]]
    marker.later([3])
    eventually(lambda: len(recorder.marked) == 4, message="a later call starts a thread")


def test_forked_child_leaves_pending_jobs_to_its_parent() -> None:
    recorder, marker = writing()
    marker.later([2])

    def writes_its_own_alone() -> bool:
        recorder.goes_on.set()
        marker.flush()
        marker.later([3])
        marker.flush()
        return [jobs for _, jobs in recorder.marked] == [[3]]

    assert is_true_in_a_child(writes_its_own_alone)
    recorder.goes_on.set()
    marker.flush()
    assert [jobs for _, jobs in recorder.marked] == [[1], [2]]


def test_idle_thread_ends(jobs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobhandle_celery.background.IDLE_TIMEOUT", 0.05)
    jobs.handle().submit(ADD)
    marker = runtime_of(jobs._app).submitter.queued_marker
    eventually(lambda: marker._thread is None, message="the thread ends")
    jobs.handle().submit(ADD)
    assert {job.status for job in jobs.find()} == {JobStatus.QUEUED}
