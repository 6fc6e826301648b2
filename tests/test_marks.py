"""The mark Queued: written a moment later, many at a time, by a thread that nobody waits for."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy
from billiard.exceptions import SoftTimeLimitExceeded
from sqlalchemy.orm import Session

from jobhandle_celery import Job, JobStatus
from jobhandle_celery.broker.queued_marker import QueuedMarker
from jobhandle_celery.errors import DatabaseUnavailableError
from jobhandle_celery.runtime import runtime_of
from tests.apps import make_app
from tests.support import a_soft_limit_of, eventually

ADD = Job(task="tests.add", args=[1, 2])


@pytest.fixture
def jobs(database_url: str) -> Iterator[Any]:
    app: Any = make_app("memory://", database_url)
    yield app.jobs
    app.jobs.close()


def statuses(database_url: str) -> list[str]:
    """What the rows say, without a question to the library."""
    engine = sqlalchemy.create_engine(database_url)
    with engine.connect() as connection:
        words = connection.exec_driver_sql(
            "SELECT value FROM jobhandle_job JOIN jobhandle_job_status s ON s.id = status_id"
        ).scalars()
        found = list(words)
    engine.dispose()
    return found


def test_a_mark_is_written_though_nobody_asks(jobs: Any, database_url: str) -> None:
    jobs.submit_many([ADD] * 3)
    eventually(lambda: statuses(database_url) == ["Queued"] * 3, 10, "the marks")


def test_whoever_looks_in_the_same_process_finds_the_mark(jobs: Any) -> None:
    handle = jobs.handle()
    for _ in range(20):
        job_id = handle.submit(ADD)
        assert handle.job_status() is JobStatus.QUEUED
        jobs.submit_many([ADD])
        assert jobs.find()[0].status is JobStatus.QUEUED
        assert jobs.attach(job_id).cancel_job() is JobStatus.CANCELLED


def test_marks_are_written_before_an_orderly_end_of_the_process(database_url: str) -> None:
    program = (
        "import sys; from tests.apps import make_app; from jobhandle_celery import Job\n"
        "app = make_app('memory://', sys.argv[1])\n"
        "app.jobs.submit_many([Job(task='tests.add', args=[1, 2])] * 5)\n"
    )
    subprocess.run([sys.executable, "-c", program, database_url], check=True, timeout=60)
    assert statuses(database_url) == ["Queued"] * 5


class Recorder:
    """In the place of a store: what was marked, by which process."""

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


def marks_of(recorder: Recorder, publish_grace: float = 5) -> Any:
    return QueuedMarker(recorder, timedelta(seconds=publish_grace))  # type: ignore[arg-type]  # it has what Marks asks of a store


def being_written() -> tuple[Recorder, Any]:
    """Return marks whose first one, a 1, is on its way until the recorder goes on."""
    recorder = Recorder()
    marks = marks_of(recorder)
    recorder.goes_on.clear()
    marks.later([1])
    eventually(lambda: not marks._pending, 10, "the thread takes it")
    return recorder, marks


def test_what_comes_meanwhile_is_written_together() -> None:
    recorder = Recorder()
    marks = marks_of(recorder)
    recorder.goes_on.clear()
    marks.later([0])
    for number in range(1, 2000):
        marks.later([number])
    recorder.goes_on.set()
    marks.flush()
    written = [one for _, some in recorder.marked for one in some]
    assert written == list(range(2000))
    assert len(recorder.marked) < 100


def test_a_flush_waits_for_what_is_being_written() -> None:
    recorder, marks = being_written()
    threading.Timer(0.2, recorder.goes_on.set).start()
    marks.flush()
    assert [some for _, some in recorder.marked] == [[1]]


def locked_out(again: str) -> DatabaseUnavailableError:
    error = DatabaseUnavailableError("locked")
    error.again = again  # type: ignore[assignment]  # a word of its own
    return error


def test_look_leaves_marks_of_locked_rows_to_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobhandle_celery.broker.queued_marker.DELAY", 0.01)
    recorder = Recorder()
    marks = marks_of(recorder)
    recorder.fails = locked_out("soon")
    marks.later([1])
    marks.flush_once()
    marks.later([2])
    recorder.fails = None
    eventually(lambda: sorted(one for _, some in recorder.marked for one in some) == [1, 2], 10)


def test_end_of_process_waits_for_locked_rows_with_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobhandle_celery.background.FLUSH_TIMEOUT", 0.1)
    recorder = Recorder()
    marks = marks_of(recorder)
    recorder.fails = locked_out("soon")
    marks.later([1])
    marks.flush()
    assert recorder.marked == []
    recorder.fails = None
    marks.flush()
    assert [some for _, some in recorder.marked] == [[1]]


def test_look_in_a_session_waits_for_none_of_its_locks(
    jobs: Any, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """On SQLite it waited for the session's write lock, in the same thread, until the mark was given up."""
    engine, handle = sqlalchemy.create_engine(database_url), jobs.handle()
    with Session(engine) as session:
        with jobs._runtime.submitter.marks._working:  # the thread comes to it later
            [job_id] = jobs.submit_many([ADD])
            handle.submit(ADD, session=session)
        assert handle.attach(job_id) in (JobStatus.SUBMITTED, JobStatus.QUEUED)
        session.commit()
    eventually(lambda: handle.job_status() is JobStatus.QUEUED)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    engine.dispose()


@pytest.mark.parametrize("error", [DatabaseUnavailableError("away"), RuntimeError("out of order")])
def test_marks_that_cannot_be_written_harm_nobody(error: Exception) -> None:
    recorder = Recorder()
    marks = marks_of(recorder)
    recorder.fails = error
    marks.later([1])
    marks.flush()
    recorder.fails = None
    marks.later([2])
    eventually(lambda: [some for _, some in recorder.marked] == [[2]], 10, "the thread has lived on")


def test_a_time_limit_that_comes_while_marks_are_written_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobhandle_celery.broker.queued_marker.DELAY", 60)
    recorder = Recorder()
    marks = marks_of(recorder, publish_grace=3600)
    recorder.goes_on.clear()
    marks.later([1])
    with pytest.raises(SoftTimeLimitExceeded), a_soft_limit_of(0.2):
        marks.flush()  # the thread still gathers, so the marks are written here
    recorder.goes_on.set()
    marks.later([2])
    marks.flush()
    assert [some for _, some in recorder.marked] == [[2]]  # a mark that is lost is harmless


def test_where_no_thread_can_be_had_marks_are_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    recorder = Recorder()
    marks = marks_of(recorder)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        for number in range(3):
            marks.later([number])
        assert [some for _, some in recorder.marked] == [[0], [1], [2]]
    marks.later([3])
    eventually(lambda: len(recorder.marked) == 4, 10, "a thread is tried again")


def test_a_forked_child_leaves_its_parents_marks_to_the_parent() -> None:
    recorder, marks = being_written()
    marks.later([2])
    child = os.fork()
    if child == 0:
        recorder.goes_on.set()
        marks.flush()
        marks.later([3])
        marks.flush()
        os._exit(0 if [some for _, some in recorder.marked] == [[3]] else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    recorder.goes_on.set()
    marks.flush()
    assert [some for _, some in recorder.marked] == [[1], [2]]


def test_the_thread_ends_when_there_is_nothing_to_do(jobs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobhandle_celery.background.IDLE_TIMEOUT", 0.05)
    jobs.handle().submit(ADD)
    marks = runtime_of(jobs._app).submitter.marks
    eventually(lambda: marks._thread is None, 10, "the thread's end")
    jobs.handle().submit(ADD)
    assert {job.status for job in jobs.find()} == {JobStatus.QUEUED}
