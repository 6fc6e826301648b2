"""Bodies that fail or stop, and hooks that do."""

import os
import signal
import sys
import time
from typing import Any

from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

from jobhandle_celery import StopRequested
from tests.apps import append_line
from tests.worker.base_app import task


@task()
def raise_value_error(message: str) -> None:
    raise ValueError(message)


@task(track_started=True)
def raise_tracked(message: str) -> None:
    raise ValueError(message)


@task()
def fails_when_there(path: str, sign: str) -> None:
    append_line(path, "begun")
    while not os.path.exists(sign):
        time.sleep(0.02)
    raise ValueError("it was there")


class Unpicklable(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


@task()
def raise_unpicklable() -> None:
    raise Unpicklable("can not", " be rebuilt")


@task()
def raise_memory_error() -> None:
    raise MemoryError("no room")


@task()
def exit_in_body(code: int) -> None:
    sys.exit(code)


@task()
def raise_keyboard_interrupt() -> None:
    raise KeyboardInterrupt


@task()
def kill_own_process(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)
    time.sleep(10)


@task(acks_late=True, reject_on_worker_lost=True)
def kill_own_process_late(path: str) -> None:
    append_line(path, "begun")
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(10)


@task()
def clean_up_at_soft_limit(path: str) -> str:
    try:
        time.sleep(30)
    except SoftTimeLimitExceeded:
        append_line(path, "cleaned up")
    return "in time after all"


@task()
def ignore() -> None:
    raise Ignore


@task(acks_late=True)
def reject() -> None:
    raise Reject("not mine", requeue=False)


@task(acks_late=True)
def reject_once(path: str) -> str:
    first = not os.path.exists(path)
    append_line(path, "begun")
    if first:
        raise Reject("not now", requeue=True)
    return "second"


@task(bind=True)
def ends_when_there(self: Any, path: str, sign: str, how: str) -> str:
    """Run until a file exists, then end in one of the ways that a body can."""
    append_line(path, "begun")
    while not os.path.exists(sign):
        time.sleep(0.02)
    append_line(path, "ended")
    match how:
        case "fail":
            raise ValueError("no good")
        case "stop":
            raise StopRequested("enough")
        case "retry" if not self.request.retries:
            raise self.retry(countdown=0)
    return "returned"


# Hooks that fail.


def _hook_that_kills(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(10)


@task(after_return=_hook_that_kills)
def dies_after_its_end() -> str:
    return "done"


def _hook_that_raises(*_: Any) -> None:
    raise RuntimeError("the hook broke")


@task(on_success=_hook_that_raises)
def bad_on_success() -> str:
    return "done"


@task(after_return=_hook_that_raises)
def bad_after_return() -> str:
    return "done"


@task(on_failure=_hook_that_raises)
def bad_on_failure() -> None:
    raise ValueError("the body's own")


@task(on_retry=_hook_that_raises, bind=True)
def bad_on_retry(self: Any) -> None:
    raise self.retry(countdown=0)


BEFORE_START: dict[str, BaseException] = {
    "bad_before_start": RuntimeError("the hook broke"),
    "before_start_ignores": Ignore("not today"),
    "before_start_rejects": Reject("not today", requeue=False),
    "before_start_stops": StopRequested("before it began"),
}
for _name, _error in BEFORE_START.items():

    def _hook(*_: Any, error: BaseException = _error) -> None:
        raise error

    def _body(path: str) -> None:
        append_line(path, "begun")

    _body.__name__ = _name
    task(before_start=_hook)(_body)


# Bodies that stop.


@task()
def stop_saying(words: str) -> None:
    raise StopRequested(words)


@task()
def catches_exceptions(path: str) -> None:
    try:
        raise StopRequested("through everything")
    except Exception:
        append_line(path, "swallowed")


for _name, _kind in (("autoretry_exception_stops", Exception), ("autoretry_everything_stops", BaseException)):

    def _stops(path: str) -> None:
        append_line(path, "begun")
        raise StopRequested("no retry")

    _stops.__name__ = _name
    task(autoretry_for=(_kind,), max_retries=3, default_retry_delay=0)(_stops)


@task(bind=True, default_retry_delay=0)
def retry_on_stop(self: Any, path: str) -> None:
    append_line(path, "begun")
    try:
        raise StopRequested("no retry")
    except StopRequested as stop:
        raise self.retry(exc=stop) from None
