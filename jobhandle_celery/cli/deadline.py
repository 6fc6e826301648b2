"""Questions with a deadline: a server that is silent must not silence a command. Imports nothing of ours.

Drivers bound their waits in their own ways, some of them not at all. So each question is asked in a thread,
and the command goes on without an answer; the thread is a daemon, which no end of a process waits for.
"""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Silent(Exception):
    """There was no answer in time."""


class Question(Generic[T]):
    """A question, asked from its creation on."""

    def __init__(self, ask: Callable[[], T]) -> None:
        self._ask = ask
        self._answers: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="jobhandle-question", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._answers.append(self._ask())
        except BaseException as error:  # raised again in the thread that wants the answer
            self._error = error

    def answer(self, seconds: float) -> T:
        """Return the answer, or raise what asking for it raised.

        Raises:
            Silent: there is none after so many seconds.
        """
        self._thread.join(seconds)
        if self._thread.is_alive():
            raise Silent(f"no answer within {seconds:.2g} s")
        if self._error is not None:
            raise self._error
        return self._answers[0]
