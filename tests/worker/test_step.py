"""The worker's bootstep in this process: its start, its end without a database, and its command."""

import logging
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, bootsteps
from celery.worker.consumer.tasks import Tasks
from celery.worker.control import Panel
from kombu import Connection

from jobhandle_celery import Jobs
from jobhandle_celery.errors import DatabaseUnavailableError
from jobhandle_celery.runtime import DeferredWrite, runtime_of
from jobhandle_celery.store import Run, RunResult
from jobhandle_celery.worker import bootstep
from jobhandle_celery.worker.finisher import Finisher
from tests.support import eventually

AWAY = "postgresql+psycopg://127.0.0.1:1/away"


@pytest.fixture
def controller(tmp_path: Path) -> Callable[..., Any]:
    def make(url: str, pool: str = "solo", **settings: Any) -> Any:
        app: Any = Celery("stepped", broker="memory://", set_as_current=False)
        app.conf.update(jobhandle_sweep_interval=0.05, worker_hijack_root_logger=False, **settings)
        Jobs(app, url)
        return app.WorkController(pool=pool, hostname="w1@here")

    return make


def step_of(controller: Any) -> bootstep.JobsStep:
    return next(step for step in controller.steps if isinstance(step, bootstep.JobsStep))


def our_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("jobhandle-")}


def test_steps_of_the_worker_are_boot_steps(controller: Callable[[str], Any], sqlite_url: str) -> None:
    """Other tools read `obj` of each (fault 62)."""
    steps = controller(sqlite_url).steps

    assert len(steps) > 2
    assert [step for step in steps if not isinstance(step, bootsteps.StartStopStep)] == []
    assert [step.obj for step in steps[:1]] == [None]


@pytest.mark.parametrize("fast_publish", [True, False])
def test_worker_spends_less_on_redis(
    controller: Callable[..., Any], sqlite_url: str, redis_url: str, fast_publish: bool
) -> None:
    """From each connection on, unless kombu alone is to be used."""
    consumer = controller(sqlite_url, jobhandle_fast_publish=fast_publish).consumer
    kinds = [type(step) for step in consumer.steps]
    assert kinds.index(Tasks) < kinds.index(bootstep.ConsumerStep)
    (step,) = [step for step in consumer.steps if isinstance(step, bootstep.ConsumerStep)]
    for _ in range(2):
        with Connection(redis_url) as connection:
            channel: Any = connection.default_channel
            started = SimpleNamespace(
                app=consumer.app, task_consumer=SimpleNamespace(channel=channel), timer=consumer.timer
            )
            step.start(started)
            assert (channel._create_client() is channel._create_client()) == fast_publish
            assert ("append" in vars(channel.qos)) == fast_publish
            step.stop(started)
            assert step._unacked is None or step._unacked._ended


@pytest.mark.parametrize("trouble", ["no tables", "away"])
def test_shutdown_without_a_lease_does_not_wait(
    controller: Callable[[str], Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
) -> None:
    """No traceback is logged, no thread remains, no call is repeated (faults 63, 64)."""
    controlled = controller(AWAY if trouble == "away" else f"sqlite:///{tmp_path}/empty.sqlite3")
    step, before = step_of(controlled), our_threads()
    slept: list[float] = []
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "jobhandle_celery"):
        patched.setattr("jobhandle_celery.worker.bootstep.time.sleep", slept.append)
        step.start(controlled)
        step.shutdown(controlled)

    assert slept == []
    # One that logs a failed renewal, or is of an earlier test, may end meanwhile.
    eventually(lambda: our_threads() <= before)
    assert [record for record in caplog.records if record.exc_info] == []
    assert "shutdown of w1@here leaves its lease to expire" in caplog.text


def test_shutdown_waits_for_results_that_are_being_written(
    controller: Callable[[str], Any], sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their rows still name this worker, which gives back what it has not finished."""
    controlled = controller(sqlite_url)
    step, runtime, opened = step_of(controlled), runtime_of(controlled.app), threading.Event()
    order: list[str] = []
    runtime.finisher = Finisher(runtime.store, runtime.current_worker(), lambda *_: None, nullcontext)

    def finish_many(results: Any, _: Any) -> set[int]:
        assert opened.wait(30)
        order.append("finish")
        return {run.job_id for run in results}

    def give_back_all(*_: Any) -> list[Any]:
        order.append("give back")
        return []

    monkeypatch.setattr(type(runtime.store.runs), "finishes_together", True)
    monkeypatch.setattr(runtime.store.runs, "finish_many", finish_many)
    monkeypatch.setattr(runtime.store.recovery, "give_back_all", give_back_all)
    step.start(controlled)
    assert runtime.finisher.send(Run(1, "task", 1, "claim", runtime.current_worker()), RunResult("3"))
    threading.Timer(0.2, opened.set).start()
    step.shutdown(controlled)

    assert order == ["finish", "give back"]


def test_shutdown_writes_results_while_other_bodies_live_on(
    controller: Callable[[str], Any], sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process may end with the last of these bodies; none of them sends a result any more."""
    controlled, written = controller(sqlite_url), list[Run]()
    step, runtime = step_of(controlled), runtime_of(controlled.app)
    runtime.finisher = Finisher(runtime.store, runtime.current_worker(), lambda *_: None, nullcontext)
    run = Run(1, "task", 1, "claim", runtime.current_worker())

    def finish_many(results: Any, _: Any) -> set[int]:
        written.extend(results)
        return {run.job_id for run in results}

    monkeypatch.setattr(type(runtime.store.runs), "finishes_together", True)
    monkeypatch.setattr(runtime.store.runs, "finish_many", finish_many)
    monkeypatch.setattr("jobhandle_celery.worker.bootstep.Housekeeping.bodies_may_live_on", True)
    monkeypatch.setattr(runtime.finisher, "start", lambda: None)
    step.start(controlled)
    assert runtime.finisher.send(run, RunResult("3"))
    step.shutdown(controlled)
    assert step._parts is not None
    step._parts[0].end(30)

    assert written == [run]
    assert not runtime.finisher.send(run, RunResult("3"))


def test_results_are_written_while_a_settle_is_held_up(
    controller: Callable[..., Any], sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A settle may publish, to a broker that does not answer."""
    controlled, answered = controller(sqlite_url, "threads"), threading.Event()
    step, runtime = step_of(controlled), runtime_of(controlled.app)
    finished: list[int] = []
    settled: list[int] = []

    def finish_many(results: Any, _: Any) -> set[int]:
        ids = [run.job_id for run in results]
        finished.extend(ids)
        assert runtime.store.database.on_unsettled is not None
        runtime.store.database.on_unsettled(ids)
        return set(ids)

    def settle(ids: Any) -> list[Any]:
        assert answered.wait(60)
        settled.extend(ids)
        return []

    monkeypatch.setattr(type(runtime.store.runs), "finishes_together", True)
    monkeypatch.setattr(runtime.store.runs, "finish_many", finish_many)
    monkeypatch.setattr(runtime.store.settling, "settle", settle)
    step.start(controlled)
    assert runtime.finisher is not None
    first, second = (Run(number, "task", 1, "claim", runtime.current_worker()) for number in (1, 2))
    assert runtime.finisher.send(first, RunResult("3"))
    eventually(lambda: finished == [1])
    assert runtime.finisher.send(second, RunResult("3"))
    eventually(lambda: finished == [1, 2])
    assert settled == []
    answered.set()
    step.shutdown(controlled)
    runtime.settler.drain()

    assert settled == [1, 2]


def test_job_of_a_body_that_ended_before_it_began_is_given_back(
    controller: Callable[..., Any], sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claimer's thread ends with the worker."""
    before = our_threads()
    controlled, given_back = controller(sqlite_url, "threads"), list[tuple[Run, str]]()
    step, runtime = step_of(controlled), runtime_of(controlled.app)
    run = Run(1, "task", 1, "claim", runtime.current_worker())

    def give_back(run: Run, reason: str, _: Any) -> None:
        given_back.append((run, reason))

    monkeypatch.setattr(runtime.store.recovery, "give_back", give_back)
    step.start(controlled)
    assert runtime.claimer is not None
    runtime.claimer._give_back(run)
    step.shutdown(controlled)

    assert given_back == [(run, "its body was ended before it began")]
    eventually(lambda: our_threads() <= before)


def test_shutdown_waits_for_pending_writes(
    controller: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outcomes of pool processes are not dropped at the first error (fault 64)."""
    controlled = controller(AWAY)
    step, tries = step_of(controlled), []

    def write() -> None:
        tries.append(1)
        if len(tries) < 3:
            runtime_of(controlled.app).store.leases.runs("any")

    monkeypatch.setattr("jobhandle_celery.worker.bootstep.time.sleep", lambda seconds: None)
    step.start(controlled)
    runtime_of(controlled.app).deferred_writes.put(DeferredWrite(1, "1", write))
    step.shutdown(controlled)

    assert len(tries) == 3


def test_periodic_thread_backs_off_after_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unavailable database is not called each second (fault 64)."""
    pauses: list[float] = []

    class Recorded(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if timeout is not None:
                pauses.append(timeout)
            return len(pauses) > len(outcomes)

    outcomes = [False, False, False, False, False, True, False]

    def work() -> None:
        if not outcomes[len(pauses) - 1]:
            raise DatabaseUnavailableError("away")

    recorded = SimpleNamespace(Event=Recorded, Thread=threading.Thread)
    monkeypatch.setattr("jobhandle_celery.worker.bootstep.threading", recorded)
    thread = bootstep.PeriodicThread("jobhandle-test", 1.0, work)
    thread._thread.join(10)

    assert pauses == [1.0, 1.0, 2.0, 4.0, 5.0, 5.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["inspect", "control"])
def test_each_command_to_workers_is_a_method_of_celery(kind: str) -> None:
    """Other tools call the methods by these names; the step's own command has another type."""
    app: Any = Celery("commanded", broker="memory://", set_as_current=False)
    client = app.control.inspect() if kind == "inspect" else app.control
    commands: dict[str, Any] = dict(Panel.meta)
    named = [name for name, command in commands.items() if command.type == kind]
    assert named
    assert [name for name in named if not hasattr(client, name)] == []
