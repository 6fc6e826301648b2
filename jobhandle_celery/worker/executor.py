"""How a worker runs one job, in five steps: claim, run, decide, write, report.

1. `claim` wins the job's row for the attempt that the message is for, before Celery logs, signals or stores
   anything of the task. A claim that is refused runs nothing.
2. `run` lets Celery trace the body. The wrappers in `instrumentation` note in `CurrentRun` which error the
   task's own code raises.
3. `decide` turns that into one frozen `Outcome`.
4. `write` writes the outcome, or leaves it to the worker's main process. That process writes most results,
   several by one commit (see `finisher`).
5. `report` does Celery's bookkeeping of a cancelled job, and publishes a retry that has no delay.

Steps 3 to 5 are `conclude`. It is called as soon as the body has ended, because what comes next, a hook or a
receiver of ``task_postrun``, may hang or end the process. Celery's signals call it for a body that returned,
failed or retried. `own_code` calls it for a body that was stopped, ignored or rejected, for which Celery
sends no signal. The signal of a retry is sent after the body has ended and Celery has stored RETRY. Any other
run is concluded once Celery's tracer has returned.
"""

import contextvars
import functools
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery import signals, states
from celery.exceptions import Ignore, Reject, Retry, WorkerShutdown, WorkerTerminate

from .. import celery_compat, internal_errors
from ..broker.headers import node_of
from ..errors import DatabaseUnavailableError, JobHandleError, SchemaError, StopRequested
from ..handle import JobHandle
from ..runtime import runtime_of
from ..store import RunResult, Store
from ..tracing import untraced
from .claim import claim
from .current_run import HARD_LIMIT, BodyExitedError, CurrentRun, ResultError, current_run, running
from .decision import decide
from .outcomes import Cancelled, Finished, Outcome, Report, Retried, is_cancelled, log_superseded
from .result_backend import mark_revoked

logger = logging.getLogger(__name__)

WRITE_TIMEOUT = 60.0
"""Seconds after which a database has answered a write, or its connection has failed."""

CROWDED_WITHIN = 1.0
"""Seconds for which the results of a large group's members are left to the main process, once the group was
seen to be large. Each process of the pool looks again after that."""


def current_job() -> JobHandle | None:
    """Return a handle of the job whose body is running; None in a task that is called without a job.

    It works in the coroutines of an event loop that the body runs, and in threads that have their context:
    ``asyncio.to_thread`` passes it on, ``threading.Thread`` does not.
    """
    task: Any = celery_compat.current_task()
    if task is not None:
        current = current_run(task.request)
        return None if current is None else runtime_of(task.app).handle(run=current.run)
    # Celery's current task is that of a thread.
    of_context = running.get()
    if not isinstance(of_context, CurrentRun) or of_context.app is None:
        return None
    return runtime_of(of_context.app).handle(run=of_context.run)


def execute(task: Any, context: Any, traced: Callable[[], Any]) -> Any:
    """Run a job's message, and return what Celery's tracer does; `traced` calls that tracer.

    A `Report` takes the place of the task's runtime if the main process has to write or report something.
    """
    try:
        with untraced():  # the task's span begins with Celery's tracer
            current = claim(task, context)
    except Ignore as refusal:
        refused = celery_compat.ignored_trace(task, context, refusal, getattr(refusal, "report", None))
        _release_traceback(refused.info)
        return refused
    try:
        with run(task, current):
            unstartable = current.unstartable
            returned = (
                traced() if unstartable is None else celery_compat.failed_task(task, context, unstartable)
            )
            conclude(task, current, _error_outside(current, returned))
    except Exception as error:
        if current.outcome is None or current.written:
            raise
        # The result backend and the jobs' database are away: no other process knows the outcome.
        returned = celery_compat.failed_trace(error)
    _release_traceback(returned.info)
    unwritten = None if current.written else current.outcome
    if unwritten is None and not current.revoked:
        return returned
    revoked = "revoked" if current.revoked else None
    return returned._replace(runtime=Report(returned.runtime, unwritten, revoked))


def _error_outside(current: CurrentRun, returned: Any) -> BaseException | None:
    """Return an error that the tracer returned and that the body did not raise."""
    if returned.info is None or returned.info.retval is current.error:
        return None
    error: BaseException = returned.info.retval
    if returned.info.state != states.FAILURE:
        # `Ignore` of a body that stopped, or the error of a body that was patched in without its wrapper.
        current.error = current.error or error
        return None
    current.traceback = current.traceback or str(getattr(returned.retval, "traceback", "") or "")
    return error


def _release_traceback(info: Any) -> None:
    """Drop the traceback of a job's error, after everything is stored and logged.

    The traceback and Celery's frames refer to each other, and keep some 100 KB that Python's collector does
    not count: a worker that refuses many duplicates would grow to twice its size.
    """
    if info is not None and isinstance(info.retval, BaseException):
        info.retval.__traceback__ = None


# Step 2: run.


@contextmanager
def run(task: Any, current: CurrentRun) -> Iterator[None]:
    """Make a run the current one while Celery traces the task, and conclude it at the end.

    Celery's tracer raises a MemoryError, what a hook of an eager task raises, and the SystemExit of a hook or
    of a receiver; it returns other errors.
    """
    token = running.set(current)
    try:
        yield
        conclude(task, current)
    except BaseException as error:
        if isinstance(error, Exception):
            conclude(task, current, outside=None if error is current.error else error)
        elif current.error is not None:  # otherwise the body was ended from outside
            conclude(task, current)
        raise
    finally:
        running.reset(token)
        current.error = None  # its traceback has this frame


@contextmanager
def own_code(task: Any, current: CurrentRun) -> Iterator[None]:
    """Note the error that a task's own code raises: its body, or its ``before_start``.

    It surrounds the outermost wrapper, so that the body has ended when an outcome is concluded here.
    """
    try:
        with runtime_of(task.app).settler.settling_at_once():
            try:
                yield
            except BaseExceptionGroup as group:
                raise _only_stop(group) from None
    except (Exception, StopRequested) as error:
        current.error = error
        stopped = isinstance(error.exc if isinstance(error, Retry) else error, StopRequested)
        if stopped or isinstance(error, (Ignore, Reject)):
            _conclude_unsignalled(task, current)
        if stopped:
            # Celery's own class, by which tools recognise that this is not an error.
            raise Ignore("stopped on request") from None
        raise
    except BaseException as error:
        if _is_from_outside(error):
            raise
        # For example sys.exit() or asyncio.CancelledError: a threads pool would never report it.
        current.error = BodyExitedError(f"the body ended itself by {type(error).__name__}: {error}")
        raise current.error from error


def _only_stop(group: BaseExceptionGroup[Any]) -> BaseException:
    """Return the stop request of a group of nothing else, as a TaskGroup raises it; else the group."""
    error: BaseException = group
    if group.split(StopRequested)[1] is None:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
    return error


def _is_from_outside(error: BaseException) -> bool:
    """Return True if it was raised into the body: by a signal, by the worker, by a pool ending a greenlet."""
    if isinstance(error, (WorkerShutdown, WorkerTerminate)):
        return True
    if isinstance(error, KeyboardInterrupt):
        # Python raises it for Ctrl-C in the main thread alone.
        return threading.current_thread() is threading.main_thread()
    if isinstance(error, SystemExit):
        # billiard's handler in a pool's child exits with this for the signal that it got.
        return isinstance(error.code, int) and -256 < error.code < -256 + signal.NSIG
    return type(error).__module__.partition(".")[0] in ("gevent", "greenlet", "eventlet")


def connect_signals() -> None:
    """Connect the receivers of a process that runs jobs.

    Called before the first job, not at import: each receiver costs every plain task some time. The
    references are strong: with weak ones each call leaks memory.
    """
    signals.task_success.connect(on_success, weak=False)
    signals.task_failure.connect(on_failure, weak=False)
    signals.task_retry.connect(on_retry, weak=False)


def _reporting(receiver: Callable[..., None]) -> Callable[..., None]:
    """Report the bugs of a receiver, which Celery would swallow."""

    @functools.wraps(receiver)
    def reporting(*args: Any, **kwargs: Any) -> None:
        try:
            receiver(*args, **kwargs)
        except Exception as error:
            if not internal_errors.is_bug(error):
                raise
            state = "the outcome is written when the tracer has returned"
            internal_errors.report("concluding a body that has ended", error, state)

    return reporting


@_reporting
def on_success(sender: Any = None, result: Any = None, **_: Any) -> None:
    """Conclude a body that has returned."""
    current = current_run(sender.request)
    if current is None:
        return
    if not current.returned:  # it was patched in without its wrapper
        try:
            current.keep(sender, result)
        except ResultError as error:
            current.error = error
    conclude(sender, current)


@_reporting
def on_failure(sender: Any = None, exception: Any = None, einfo: Any = None, **_: Any) -> None:
    """Conclude a body that has raised, or for whose result Celery's bookkeeping has failed."""
    current = current_run(sender.request)
    if current is None:
        return
    current.traceback = str(getattr(einfo, "traceback", "") or "")
    current.error = current.error or (None if current.returned else exception)
    conclude(sender, current, outside=exception if current.returned else None)


@_reporting
def on_retry(sender: Any = None, **_: Any) -> None:
    """Conclude a body that has retried, after Celery has stored RETRY."""
    current = current_run(sender.request)
    if current is not None:
        conclude(sender, current)


@_reporting
def _conclude_unsignalled(task: Any, current: CurrentRun) -> None:
    conclude(task, current)


def conclude(task: Any, current: CurrentRun, outside: BaseException | None = None) -> None:
    """Decide, write and report how a run ended, once; `outside` is an error raised outside the body."""
    if current.outcome is not None:
        return
    current.outcome = decide(task, current, outside)
    if outside is not None and current.returned:
        # For example, the result backend is unavailable. The body has returned, and the row is the truth.
        logger.warning(
            "job %s: its body returned, and Celery failed after it (%r); its outcome is %s",
            current.run.job_id,
            outside,
            type(current.outcome).__name__,
        )
    if _is_left_to_main(task, current, current.outcome):
        current.written = True
        return
    written = write(task, current, current.outcome)
    if written:
        report(task, current, current.outcome, written)


# Step 3, decide, is `decision.decide`. Step 4: write.


def _is_left_to_main(task: Any, current: CurrentRun, outcome: Outcome) -> bool:
    """Send a result to the worker's main process, which writes it with others; False if not sent.

    That of a member of a tree only if many of its siblings are unfinished: nothing waits for its end.
    """
    runtime, place = runtime_of(task.app), node_of(current.context)
    finisher = runtime.finisher
    return (
        finisher is not None
        and isinstance(outcome, Finished)
        and not current.context.is_eager
        and (place is None or runtime.store.settling.is_crowded(place[0], CROWDED_WITHIN))
        and finisher.send(outcome.run, RunResult(outcome.result, outcome.ignored))
    )


def write(task: Any, current: CurrentRun, outcome: Outcome) -> Any:
    """Write the outcome of a run; return the store's answer, None if it is not written.

    An outcome that cannot be written now is handed to the worker's main process. Retries here would occupy a
    slot of the pool, and the body's hard time limit would end them.
    """
    job_id, kind = current.run.job_id, type(outcome).__name__
    place = node_of(current.context)
    try:
        with runtime_of(task.app).settler.end_of_member(None if place is None else place[0]):
            written = _write_in_time(task, current, outcome)
    except Exception as error:
        if isinstance(error, JobHandleError):
            logger.warning("job %s: outcome %s is to be written later: %s", job_id, kind, error)
        else:
            internal_errors.report(
                "writing an outcome", error, f"that of job {job_id} is to be written later"
            )
        return None
    current.written = True
    return log_superseded(outcome, written)


def _write_in_time(task: Any, current: CurrentRun, outcome: Outcome) -> Any:
    """Write an outcome; wait no longer than half of the time that is left before the hard limit.

    Raises:
        DatabaseUnavailableError: the write may still succeed later; to write it twice is harmless.
    """
    store, limit = runtime_of(task.app).store, getattr(current.context, HARD_LIMIT, None)
    eager = bool(current.context.is_eager)
    left = math.inf if limit is None else limit - (time.monotonic() - current.began)
    if left > WRITE_TIMEOUT:
        return _write_or_wait(store, outcome, eager)
    future: Future[Any] = Future()

    def write() -> None:
        try:
            future.set_result(_write_or_wait(store, outcome, eager))
        except BaseException as error:
            future.set_exception(error)

    # In a copy of this context, as a part of the task's trace.
    within: Any = contextvars.copy_context().run
    threading.Thread(target=within, args=(write,), name="jobhandle-outcome", daemon=True).start()
    until = time.monotonic() + left / 2
    while True:
        try:
            return future.result(max(0.0, until - time.monotonic()))
        except SoftTimeLimitExceeded:
            continue
        except TimeoutError:
            raise DatabaseUnavailableError("no answer in the time that is left to its limit") from None


def _write_or_wait(store: Store, outcome: Outcome, eager: bool) -> Any:
    pause = 0.1
    while True:
        try:
            try:
                return outcome.write(store)
            except (DatabaseUnavailableError, SchemaError) as error:
                if not eager:
                    raise
                # There is no other process to write it.
                logger.warning("job %s: its outcome waits for the database: %s", outcome.run.job_id, error)
                time.sleep(pause)
                pause = min(pause * 2, 5.0)
        except SoftTimeLimitExceeded:
            continue  # the limit is the body's, and the body has ended


# Step 5: report.


def report(task: Any, current: CurrentRun, outcome: Outcome, written: Any) -> None:
    """Report a Cancelled job to Celery, and publish a retry without a delay.

    A retry with a delay is published by the sweeper when its time comes, and an eager one by Celery.
    """
    if is_cancelled(outcome, written):
        # A body that raised Ignore to be Cancelled has set the state itself.
        if not (isinstance(outcome, Cancelled) and isinstance(current.error, Ignore)):
            mark_revoked(task, current.context, "revoked")
            current.revoked = True
    elif isinstance(outcome, Retried) and outcome.is_due(written) and not current.context.is_eager:
        runtime_of(task.app).submitter.send([current.run.job_id])
