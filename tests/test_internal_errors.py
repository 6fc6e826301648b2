"""Bugs in the library's threads and callbacks: logged once, with traceback, counted, never an outage."""

import logging
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy
from celery import signals
from sqlalchemy.orm import Session

import jobhandle_celery
from jobhandle_celery import internal_errors
from jobhandle_celery.cli.context import CommandContext
from jobhandle_celery.cli.doctor.findings import Check, Deployment, Level
from jobhandle_celery.cli.doctor.workers import check_internal_errors
from jobhandle_celery.cli.output import Output
from jobhandle_celery.runtime import DeferredWrite
from jobhandle_celery.store import Worker
from jobhandle_celery.store.leases import Leases
from jobhandle_celery.store.outbox import Outbox
from jobhandle_celery.submitter import Submitter
from jobhandle_celery.worker import bootstep, events, executor, result_backend
from jobhandle_celery.worker.finisher import Finisher
from jobhandle_celery.worker.housekeeping import Housekeeping
from jobhandle_celery.worker.lease import Lease
from jobhandle_celery.worker.outcomes import Finished
from tests.bugs import bug
from tests.bugs import logged_bugs as logged
from tests.job_factory import ADD
from tests.support import eventually, is_true_in_a_child


@pytest.fixture(autouse=True)
def _no_fault_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internal_errors, "_logged", set())


@pytest.fixture
def app(sqlite_url: str, make_jobs_app: Callable[..., Any]) -> Any:
    return make_jobs_app(sqlite_url)


def count() -> int:
    return int(internal_errors.counted()["count"])


def periodic(_: Any, patch: pytest.MonkeyPatch) -> None:
    """The housekeeping thread."""
    begun = count()
    thread = bootstep.PeriodicThread("jobhandle-test", 0.01, bug)
    eventually(lambda: count() >= begun + 2, message="it goes on")
    thread.end()


def lease(app: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Leases, "renew", bug)
    runtime = app.jobs._runtime
    lease = Lease(lambda: runtime.store, Worker("w1@host", "uid", 1), runtime.settings)
    assert not lease.renew()
    assert lease._logging is not None
    lease._logging.join()


def marks(app: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Outbox, "mark_queued", bug)
    app.jobs.handle().submit(ADD)
    app.jobs._runtime.submitter.queued_marker.flush()


def after_commit(app: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Submitter, "_send_committed", bug)
    with (
        Session(sqlalchemy.create_engine(app.jobs._runtime.store.database.engine.url)) as session,
        session.begin(),
    ):
        app.jobs.handle().submit(ADD, session=session)


def event(_: Any, __: pytest.MonkeyPatch) -> None:
    events._harmless(bug)


def receiver(app: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("jobhandle_celery.worker.executor.current_run", bug)
    executor.connect_signals()  # as before the first job
    signals.task_success.send(sender=app.tasks["tests.add"], result=3)


def end_of_a_task(app: Any, _: pytest.MonkeyPatch) -> None:
    app.jobs._runtime.deferred_writes.put(DeferredWrite(1, "a task", bug))
    Housekeeping(app.jobs._runtime, SimpleNamespace(app=app)).writes.make()


def outcome(app: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(executor, "_write_in_time", bug)
    run: Any = SimpleNamespace(job_id=1, attempt=1)
    task = app.tasks["tests.add"]
    executor.write(task, SimpleNamespace(run=run, context=task.request), Finished(run, "null"))  # type: ignore[arg-type]


def finisher(app: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Finisher, "_received", bug)
    Finisher(app.jobs._runtime.store, Worker("w1@host", "uid", 1), bug, nullcontext).end()


def revoked(app: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(type(app.backend), "mark_as_failure", bug)
    task = app.tasks["tests.add"]
    result_backend.mark_revoked(task, task.request, "cancelled")


def check(app: Any, _: pytest.MonkeyPatch) -> None:
    (finding,) = Check("a check", (), bug).run(Deployment(CommandContext(app, Output())))
    assert finding.level is Level.UNKNOWN


PLACES: list[Callable[[Any, pytest.MonkeyPatch], None]] = [
    *(periodic, lease, marks, after_commit, event, receiver, end_of_a_task, outcome, revoked, check),
    finisher,
]


@pytest.mark.parametrize("place", PLACES)
def test_bug_is_logged_once_with_traceback_and_counted(
    place: Callable[..., None], app: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In each thread and callback, which goes on (fault 25)."""
    begun = count()
    for _ in range(2):
        with monkeypatch.context() as patch:
            place(app, patch)
    (error,) = logged(caplog)
    assert error.levelno == logging.ERROR
    assert error.exc_info
    assert count() >= begun + 2
    words = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert not [word for word in words if "did not answer" in word or "not reached" in word]


def test_error_in_pool_process_is_counted_by_main_process() -> None:
    """A worker reports the bugs of its pool processes (fault 25)."""
    begun = count()

    def report() -> bool:
        internal_errors.report("the work of a child", TypeError("a bug"), "nothing")
        return True

    assert is_true_in_a_child(report)
    assert bootstep._internal_errors(None) == {"count": begun + 1, "last": "the work of a child: TypeError"}


def test_message_of_a_sensitive_error_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise TypeError("secret")
    except TypeError as error:
        internal_errors.report("publishing", error, "the job is put off", hide=True)
    assert "test_internal_errors.py" in caplog.text
    assert "secret" not in caplog.text.replace('raise TypeError("secret")', "")


def test_doctor_reports_internal_errors(app: Any) -> None:
    """With their count and the last of them (fault 25)."""
    deployment = Deployment(CommandContext(app, Output()))
    last = "publishing: TypeError at x.py:1"
    answers = {
        "w1@host": {"count": 3, "last": last},
        "w2@host": {"count": 0, "last": ""},
    }
    vars(deployment)["answers"] = {"errors": answers}
    (finding,) = check_internal_errors(deployment)
    assert finding.level is Level.WARN
    assert "w1@host has had 3 internal errors" in finding.message
    assert last in finding.message
    vars(deployment)["answers"] = {"errors": {}}
    assert [finding.level for finding in check_internal_errors(deployment)] == [Level.UNKNOWN]


def test_every_thread_of_the_library_reports_errors() -> None:
    """These tests know each thread target in the package (fault 25)."""
    package = Path(jobhandle_celery.__file__).parent
    found = {
        (file.name, target)
        for file in package.rglob("*.py")
        for target in re.findall(r"Thread\(\s*target=([\w.]+)", file.read_text())
    }
    known = {
        ("background.py", "self._run"),
        ("bootstep.py", "self._run"),
        ("claimer.py", "self._run"),
        ("finisher.py", "self._run"),
        ("lease.py", "self._run"),
        ("lease.py", "log"),
        # These raise in what waits for them: a run's thread, that of a command's check, and every wait.
        ("executor.py", "within"),
        ("deadline.py", "self._run"),
        ("completion.py", "self._run"),
    }
    assert found == known, "a new thread: report its bugs by `internal_errors`, and add it here"
