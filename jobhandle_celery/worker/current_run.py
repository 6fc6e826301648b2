"""One run of a job's body in this process, and where its code finds it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from celery.canvas import Signature
from celery.result import ResultBase

from .. import celery_compat, serialization
from ..store import NOT_KEPT, Run
from .outcomes import Outcome


class ResultError(TypeError):
    """What a body returned cannot be kept as the result of a job."""


class ArgumentsError(ValueError):
    """The results of what a job needs cannot be put before its arguments."""


class BodyExitedError(RuntimeError):
    """A body raised a BaseException, which would have ended its process or thread, too."""


@dataclass
class CurrentRun:
    """One run of a body in this process, from its won claim to the write that ends it."""

    run: Run
    context: Any
    """The request, as Celery's own Context: `task.request` is gone when the tracer has returned."""
    began: float = field(default_factory=time.monotonic)
    """When its process took the message, by the monotonic clock: its time limits count from there."""
    app: Any = None
    """The app of its task."""
    unstartable: ArgumentsError | None = None
    """Why its body cannot start, though the claim has won."""
    entered: bool = False
    error: BaseException | None = None
    """The error that the task's own code raised."""
    traceback: str = ""
    returned: bool = False
    """The body has returned, and its result is kept: a later error is not the body's."""
    result: str = "null"
    ignored: bool = False
    """The task ignores its result: the row keeps it only for jobs that get it as an argument."""
    retry: Signature | None = None
    """What the body asked for by ``retry()``; after ``throw=False`` it counts once the body has ended."""
    state: tuple[str, Any] | None = None
    """State and meta that the body set by ``update_state``; they count if it ends by ``Ignore``."""
    outcome: Outcome | None = None
    written: bool = False
    """The outcome is written, or the run was superseded."""
    revoked: bool = False
    """The outcome left the job Cancelled, and that was reported to the result backend."""

    def keep(self, task: Any, returned: object) -> None:
        """Keep what the body has returned as the result of its job; an ignored result may be anything.

        Raises:
            ResultError: it is no JSON.
        """
        self.ignored = celery_compat.ignores_result(task, self.context)
        try:
            if isinstance(returned, ResultBase):  # as Celery's backends
                returned = returned.as_tuple()  # type: ignore[attr-defined]  # all have it
            self.result = serialization.encode(returned)
        except serialization.NotStorableError as error:
            if not self.ignored:
                raise ResultError(f"the result {error}") from None
            self.result = NOT_KEPT
        self.returned = True


HARD_LIMIT = "jobhandle_hard_limit"
"""The hard time limit in a request, in seconds or None: only the main process knows which one holds."""


@dataclass(frozen=True)
class Unclaimed:
    """The value of `running` in a method of a task's own request class: the task's body may not run there.

    Bodies of other tasks may: they are not the job's.
    """

    task: Any


running: ContextVar[CurrentRun | Unclaimed | None] = ContextVar("jobhandle_current_run", default=None)
"""Not None while Celery traces a job's message in this context, or handles the request of one."""


@contextmanager
def unclaimed(task: Any) -> Iterator[None]:
    """Refuse the body of a task within the block, unless a claim wins there."""
    token = running.set(Unclaimed(task))
    try:
        yield
    finally:
        running.reset(token)


def current_run(request: Any) -> CurrentRun | None:
    """Return the run of a task request; None if it is no job's, or its claim has not won."""
    current = running.get()
    return current if isinstance(current, CurrentRun) and current.run.task_id == request.id else None
