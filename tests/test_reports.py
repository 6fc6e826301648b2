"""A worker's main process writes the outcomes that its pool processes could not write."""

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from celery import signals
from celery.worker import state

from jobhandle_celery import Failure, Job, JobHandle, JobStatus, serialization
from jobhandle_celery.broker.headers import job_headers
from jobhandle_celery.errors import DatabaseRefusedError, DatabaseUnavailableError, JobHandleError
from jobhandle_celery.runtime import DeferredWrite, Runtime, runtime_of
from jobhandle_celery.store import ProcessRef, Run, RunResult, Worker
from jobhandle_celery.worker.finisher import MAX_TRIES, Finisher
from jobhandle_celery.worker.housekeeping import Housekeeping
from jobhandle_celery.worker.outcomes import (
    REFUSALS,
    Cancelled,
    Failed,
    Finished,
    GivenBack,
    Outcome,
    Report,
    Retried,
    log_superseded,
    take_over,
)
from tests.servers import execute

AGAIN = serialization.encode({"args": [1, 2], "kwargs": {}, "options": {}})


class Main:
    """A worker's main process with a running job, as far as housekeeping sees it."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.runtime: Runtime = runtime_of(app)
        me = self.runtime.worker = Worker("w1@here", str(uuid.uuid4()), 1)
        self.runtime.store.leases.renew(me)
        consumer = SimpleNamespace(call_soon=lambda _, send, *event: self.events.append(event[0]))
        self.events: list[str] = []
        self.housekeeping = Housekeeping(self.runtime, SimpleNamespace(consumer=consumer))
        self.handle: JobHandle = app.jobs.handle()
        self.handle.submit(Job(task="tests.add", args=[1, 2]))
        task_id = str(self.handle.get_job().task_id)
        self.run = Run(self.handle.job_id, task_id, 1, str(uuid.uuid4()), me)
        assert self.runtime.store.runs.claim(self.run, "tests.add") == self.run
        headers = {"id": task_id, "task": "tests.add", **job_headers(self.handle.job_id, 1)}
        message = SimpleNamespace(
            headers=headers,
            body=b"",
            payload=([], {}, {}),
            content_type="application/json",
            content_encoding="utf-8",
            delivery_info={},
            properties={},
        )
        task = app.tasks["tests.add"]
        self.request = task.Request(message, app=app, task=task)

    def take(self, outcome: type[Outcome], *arguments: Any) -> None:
        self.request.apply_report(Report(1.0, outcome(self.run, *arguments)))


@pytest.fixture
def main(sqlite_url: str, make_jobs_app: Callable[..., Any]) -> Main:
    state.reset_state()  # requests of other tests in this process
    return Main(make_jobs_app(sqlite_url, result_backend="cache+memory://"))


@pytest.mark.parametrize(
    ("outcome", "arguments", "status", "events"),
    [
        (Finished, ("3",), JobStatus.FINISHED, []),
        (Failed, (Failure("task", "ValueError", "no good"),), JobStatus.ERROR, []),
        (Cancelled, ("enough",), JobStatus.CANCELLED, ["task-revoked"]),
        (Retried, (AGAIN, None, 60.0, "retry"), JobStatus.REQUEUED, []),
        (Retried, (AGAIN, None, None, "retry"), JobStatus.QUEUED, []),
        (GivenBack, ("again",), JobStatus.REQUEUED, ["task-retried"]),
    ],
)
def test_main_process_writes_what_a_child_could_not(
    main: Main, outcome: type[Outcome], arguments: tuple[Any, ...], status: JobStatus, events: list[str]
) -> None:
    main.take(outcome, *arguments)
    assert main.housekeeping.writes.has_outcomes
    main.housekeeping.writes.make()
    assert (main.handle.job_status(), main.events) == (status, events)
    assert not main.housekeeping.writes.has_outcomes


@pytest.fixture
def finisher(main: Main, monkeypatch: pytest.MonkeyPatch) -> Iterator[Finisher]:
    """Without its thread: it writes at a flush."""
    runs = main.runtime.store.runs
    monkeypatch.setattr(type(runs), "finishes_together", True)

    def finish_many(results: Mapping[Run, RunResult], _: Worker) -> set[int]:
        return {run.job_id for run, result in results.items() if runs.finish(run, result.text)}

    def taken(run: Run, result: RunResult) -> None:
        take_over(main.runtime, Finished(run, *result), log_superseded)

    monkeypatch.setattr(runs, "finish_many", finish_many)
    main.runtime.finisher = Finisher(main.runtime.store, main.run.worker, taken, nullcontext)
    yield main.runtime.finisher
    main.runtime.finisher.end()


def test_result_that_is_left_and_superseded_is_dropped(
    main: Main, finisher: Finisher, caplog: pytest.LogCaptureFixture
) -> None:
    main.runtime.store.recovery.lose(main.run, "gone", main.run.worker)
    assert finisher.send(main.run, RunResult("3"))
    for _ in range(MAX_TRIES):
        finisher.flush()
    main.housekeeping.writes.make()
    assert main.handle.job_status() is JobStatus.ERROR
    assert f"job {main.run.job_id}: outcome Finished of attempt 1 is dropped" in caplog.text
    assert not main.housekeeping.writes.has_outcomes


def test_result_that_cannot_be_written_with_others_is_written_by_itself(
    main: Main, finisher: Finisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise DatabaseRefusedError("no")

    monkeypatch.setattr(main.runtime.store.runs, "finish_many", refused)
    assert finisher.send(main.run, RunResult("3"))
    finisher.flush()
    assert main.handle.job_running()
    main.housekeeping.writes.make()
    assert main.handle.result(timeout=0) == 3


@pytest.mark.parametrize("end", ["lost", "past its limit", "cut off"])
@pytest.mark.parametrize("alone", [False, True], ids=["with others", "by itself"])
@pytest.mark.parametrize("locked", [False, True], ids=["", "after a lock"])
def test_result_that_a_child_has_sent_comes_before_its_end(
    main: Main, finisher: Finisher, end: str, alone: bool, locked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child is gone, and the main process has not written what it sent before."""

    def refused(*_: Any, **__: Any) -> Any:
        raise DatabaseUnavailableError("away for a moment")

    assert finisher.send(main.run, RunResult("3"))
    if alone:
        monkeypatch.setattr(main.runtime.store.runs, "finish_many", refused)
    recovery, me = main.runtime.store.recovery, main.run.worker
    ref = ProcessRef(main.run.job_id, main.run.task_id, 1, str(me.worker_uid), me.pid)
    writes: dict[str, Callable[[], object]] = {
        "lost": lambda: recovery.lose(ref, "gone", me),
        "past its limit": lambda: recovery.fail_process(ref, Failure("system", "TimeLimitExceeded", ""), me),
        "cut off": lambda: recovery.give_back(ref, "cut off", me),
    }
    main.runtime.deferred_writes.put(DeferredWrite(main.run.job_id, main.run.task_id, writes[end]))
    if locked:
        with monkeypatch.context() as patch:
            patch.setattr(main.runtime.store.runs, "finish_many", refused)
            patch.setattr(main.runtime.store.runs, "finish", refused)
            main.housekeeping.writes.make()
        assert main.handle.job_running()
    main.housekeeping.writes.make()
    assert main.handle.result(timeout=0) == 3


def test_job_whose_result_waits_for_its_commit_is_no_stray(
    main: Main, finisher: Finisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its request is gone, and its row still names this worker."""
    monkeypatch.setattr(main.housekeeping, "_lasting", lambda _, seen: list(seen))
    monkeypatch.setattr(main.housekeeping._worker.consumer, "connection", object(), raising=False)
    assert finisher.send(main.run, RunResult("3"))
    main.housekeeping()
    assert main.handle.result(timeout=0) == 3


def test_retry_of_a_cancelled_job_is_revoked_by_the_main_process(main: Main) -> None:
    revoked: list[Any] = []

    def on_revoked(request: Any = None, **_: Any) -> None:
        revoked.append(request.id)

    signals.task_revoked.connect(on_revoked)
    main.handle.cancel_job()
    main.take(Retried, AGAIN, None, None, "retry")
    main.housekeeping.writes.make()
    assert main.handle.job_status() is JobStatus.CANCELLED
    assert (revoked, main.events) == ([main.run.task_id], ["task-revoked"])
    assert main.app.AsyncResult(main.run.task_id).state == "REVOKED"


def refuse(main: Main, method: str, error: JobHandleError) -> Callable[[], None]:
    """Make one method of the store fail; return the function that ends this."""
    store = main.runtime.store
    part = {"finish": store.runs, "lose": store.recovery, "renew": store.leases}[method]

    def refused(*_: Any, **__: Any) -> Any:
        raise error

    setattr(part, method, refused)
    return lambda: delattr(part, method)


def unavailable(again: Any) -> DatabaseUnavailableError:
    error = DatabaseUnavailableError("no")
    error.retry = again
    return error


def test_outcome_that_breaks_connections_is_written_plainer(main: Main) -> None:
    """A server closes the connection at a too large packet, without an error (fault 26)."""
    refuse(main, "finish", unavailable("immediately"))
    main.take(Finished, '"too large"')
    for _ in range(REFUSALS):
        main.housekeeping.writes.make()
        assert main.handle.job_running()
    main.housekeeping.writes.make()
    assert main.handle.job_status() is JobStatus.ERROR
    assert main.handle.job_message().startswith("the body returned, and its result could not be stored")


@pytest.mark.parametrize("again", [None, "after_pause"])
def test_waiting_outcome_delays_no_other(main: Main, again: str | None) -> None:
    """On a locked row or a full disk it stays pending, and other outcomes are written."""
    allow = refuse(main, "finish", unavailable(again))
    other = Main(main.app)
    main.take(Finished, '"waits"')
    main.request, main.run = other.request, other.run
    main.take(Failed, Failure("task", "ValueError", "no good"))
    for _ in range(REFUSALS + 2):
        main.housekeeping.writes.make()
    assert other.handle.job_status() is JobStatus.ERROR
    assert main.handle.job_running()
    assert main.housekeeping.writes.has_outcomes
    allow()
    main.housekeeping.writes.make()
    assert main.handle.result(timeout=0) == "waits"


def test_outcome_stays_pending_while_the_database_is_away(main: Main) -> None:
    refuse(main, "renew", unavailable(None))
    refuse(main, "finish", DatabaseUnavailableError("away"))
    main.take(Finished, "3")
    with pytest.raises(DatabaseUnavailableError):
        main.housekeeping.writes.make()
    assert main.housekeeping.writes.has_outcomes


def test_stray_refused_by_the_database_delays_no_pass(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main.housekeeping, "_lasting", lambda _, now: list(now))
    main.housekeeping._worker.consumer.connection = object()
    allow = refuse(main, "lose", DatabaseRefusedError("no"))
    main.housekeeping()
    assert main.handle.job_running()
    allow()
    main.housekeeping()
    assert main.handle.job_status() is JobStatus.ERROR


def test_running_job_without_a_process_id_has_no_survivor(main: Main, sqlite_url: str) -> None:
    main.runtime.prefork = True
    execute(sqlite_url, "UPDATE jobhandle_job SET pid = NULL")
    assert not main.housekeeping.writes.kill_survivors()
