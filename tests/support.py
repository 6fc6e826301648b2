"""Waits for a condition, forks, and skips without a program. Imports nothing of the library."""

import gc
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import pytest
from billiard.exceptions import SoftTimeLimitExceeded

T = TypeVar("T")


def eventually(condition: Callable[[], T], timeout: float = 120, message: str = "") -> T:
    """Poll until the condition is true, and return its value; the only sleep in the tests.

    It is polled once more after the timeout (in seconds): a machine that paused this process must not
    fail the test. An exception in the condition propagates.

    Raises:
        AssertionError: with the last value.
    """
    deadline = time.monotonic() + timeout
    pause = 0.005
    while True:
        late = time.monotonic() >= deadline
        value = condition()
        if value:
            return value
        if late:
            prefix = f"{message}: " if message else ""
            raise AssertionError(f"{prefix}not within {timeout:g} s; the last value was {value!r}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)


def sweep_until(jobs: Any, condition: Callable[[], T], timeout: float = 120) -> T:
    """Make passes of the sweeper until the condition is true, as `eventually`.

    A pass within the interval of another one does nothing: beside a worker, all passes may be the worker's.
    """

    def swept() -> T:
        jobs.sweep()
        return condition()

    return eventually(swept, timeout)


def prune_ended(jobs: Any) -> int:
    """Prune all jobs that have ended, once the database's clock is past their ends.

    SQLite's has milliseconds: a job that has just ended has not ended before the moment of the prune.
    """
    ends = [job.finished for job in jobs.find(status=("Finished", "Error", "Cancelled"), limit=1000)]
    eventually(lambda: all(end < jobs._runtime.store.stats.now() for end in ends))
    return int(jobs.prune(0))


def is_true_in_a_child(check: Callable[[], object]) -> bool:
    """Fork, and return whether the check is true in the child, which ends there even if it raises."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if check() else 1)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


def missing(reason: str) -> NoReturn:
    """Skip a test without a program; with `CI` set, fail it."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def a_soft_limit() -> Iterator[Callable[[float], None]]:
    """Raise SoftTimeLimitExceeded within the block, as in a pool process: by a signal handler.

    `seconds` after the yielded function is called, from any thread. The garbage collector is off meanwhile:
    Python discards exceptions of handlers within it.
    """

    def interrupt(*_: Any) -> None:
        raise SoftTimeLimitExceeded

    def comes_in(seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)

    former = signal.signal(signal.SIGALRM, interrupt)
    gc.disable()
    try:
        yield comes_in
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        gc.enable()
        signal.signal(signal.SIGALRM, former)


@contextmanager
def a_soft_limit_of(seconds: float) -> Iterator[None]:
    """Raise SoftTimeLimitExceeded within the block after `seconds`."""
    with a_soft_limit() as comes_in:
        comes_in(seconds)
        yield


def failure(call: Callable[..., object], *args: Any, **kwargs: Any) -> str:
    """Return the message with which a call fails the test."""
    with pytest.raises(pytest.fail.Exception) as failed:
        call(*args, **kwargs)
    return str(failed.value)
