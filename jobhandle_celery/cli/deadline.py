"""Calls with a deadline: a server that does not answer must not hang a command.

Database and broker drivers bound their waits in different ways, some not at all. Each call therefore runs in
a daemon thread, which does not keep the process alive, and the command continues without its result.
"""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class NoAnswerError(Exception):
    """A call did not return before its deadline."""


class BackgroundCall(Generic[T]):
    """A call that starts with the creation of this object."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="jobhandle-cli-call", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._results.append(self._function())
        except BaseException as error:  # raised again in the thread that asks for the result
            self._error = error

    def result(self, timeout: float) -> T:
        """Return what the call returned, or raise what it raised; `timeout` in seconds.

        Raises:
            NoAnswerError: the call has not returned yet.
        """
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise NoAnswerError(f"no answer within {timeout:.2g} s")
        if self._error is not None:
            raise self._error
        return self._results[0]
