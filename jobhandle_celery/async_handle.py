"""`AsyncJobHandle`: the operations of `JobHandle` as coroutines.

An operation is a call of `JobHandle` in one of a few threads. A wait needs no thread: between its steps the
coroutine waits for the process's poller.
"""

import asyncio
import copy
import functools
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from .completion import CompletionPoller, WaitCondition, WaitResult
from .handle import JobHandle, R
from .models import JobRecord
from .status import JobStatus
from .store import async_session_of, running_loop, threads
from .waits import Steps, Timeout, advance, changes, until_final, until_result

if TYPE_CHECKING:
    from celery.canvas import Signature
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

    from .models import Job

P = ParamSpec("P")
T = TypeVar("T")


def _coroutine(
    method: Callable[Concatenate[JobHandle[Any], P], T],
) -> Callable[Concatenate["AsyncJobHandle[Any]", P], Coroutine[Any, Any, T]]:
    """Make a coroutine function of a method of `JobHandle`."""

    @functools.wraps(method)
    async def call(self: "AsyncJobHandle[Any]", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await threads.call(method, self._copy(), *args, **kwargs)

    call.__qualname__ = f"AsyncJobHandle.{method.__name__}"
    return call


class AsyncJobHandle(Generic[R]):
    """The operations of a `JobHandle` as coroutines, for services on asyncio.

    They take the same arguments, return the same values, and raise the same errors. Any number of coroutines
    may use one handle. They call the database in at most four threads of the process; `wait`, `result` and
    `watch` hold no thread while they wait.

    If a coroutine is cancelled within an operation, this is carried out as a whole or not at all, and the
    handle stays attached to the job that it had. In a task whose body runs an event loop,
    ``AsyncJobHandle(current_job())`` writes for its attempt, as the `JobHandle` does.

    Raises:
        ApiUsageError: any call outside of an event loop of asyncio, under trio for example.
    """

    def __init__(self, handle: JobHandle[R]) -> None:
        """Make a handle on the job of another one; that of `Jobs.async_handle` is on none."""
        self._handle = handle

    async def submit(
        self,
        job: "Job | Signature[R]",
        *,
        session: "AsyncSession | async_scoped_session[Any] | None" = None,
    ) -> int:
        """Store a `Job` or a Celery signature, publish its message, and return its id.

        As `JobHandle.submit`, with an `AsyncSession`: the row joins its transaction, and the message is
        published after its commit; after a rollback there is no job, and the handle is not attached.

        Raises:
            ApiUsageError, ValidationError, DBAPIError, DatabaseUnavailableError: as for `JobHandle.submit`.
        """
        if session is not None:
            joined = async_session_of(session)
            prepared = await threads.call(lambda: self._handle._prepare(job).complete())
            return await joined.run_sync(lambda sync: self._handle._insert(prepared, sync))
        job_id = await threads.call(JobHandle.submit, self._copy(), job)
        self._handle._move_to(job_id)
        return job_id

    async def attach(self, job_id: int) -> JobStatus:
        """Attach to a job and return its current status.

        Raises:
            UnknownJobError: there is no job of that id, or it belongs to another user.
        """
        status = await threads.call(JobHandle.attach, self._copy(), job_id)
        self._handle._move_to(job_id)
        return status

    get_job = _coroutine(JobHandle.get_job)
    job_status = _coroutine(JobHandle.job_status)
    job_finished = _coroutine(JobHandle.job_finished)
    job_message = _coroutine(JobHandle.job_message)
    job_running = _coroutine(JobHandle.job_running)
    job_error = _coroutine(JobHandle.job_error)
    cancel_job = _coroutine(JobHandle.cancel_job)
    set_status = _coroutine(JobHandle.set_status)
    set_message = _coroutine(JobHandle.set_message)
    set_status_and_message = _coroutine(JobHandle.set_status_and_message)
    set_progress = _coroutine(JobHandle.set_progress)
    cancel_requested = _coroutine(JobHandle.cancel_requested)
    raise_if_cancelled = _coroutine(JobHandle.raise_if_cancelled)
    resubmit_job = _coroutine(JobHandle.resubmit_job)
    release_job = _coroutine(JobHandle.release_job)
    events = _coroutine(JobHandle.events)
    needs = _coroutine(JobHandle.needs)
    members = _coroutine(JobHandle.members)

    async def close(self) -> None:
        """Detach from the job, which does not change it. A second call does nothing."""
        self._handle.close()

    @property
    def job_id(self) -> int:
        """The id of the job that this handle is attached to."""
        return self._handle.job_id

    async def wait(self, timeout: float | timedelta | None = None) -> JobStatus:
        """Wait until the job is final and return its status, as `JobHandle.wait` does."""
        handle, poller = self._copy(), self._handle._poller
        return await _finish(until_final(handle, Timeout(handle, timeout, poller)), poller)

    async def result(self, timeout: float | timedelta | None = None) -> R:
        """Wait until the job is final and return what its body returned, as `JobHandle.result` does."""
        handle, poller = self._copy(), self._handle._poller
        result: R = await _finish(until_result(handle, Timeout(handle, timeout, poller)), poller)
        return result

    async def watch(self, timeout: float | timedelta | None = None) -> AsyncIterator[JobRecord]:
        """Yield the job now and at each change, until it is final, as `JobHandle.watch` does."""
        handle, poller = self._copy(), self._handle._poller
        steps = changes(handle, Timeout(handle, timeout, poller))
        while (step := await threads.call(next, steps, None)) is not None:
            if isinstance(step, WaitCondition):
                await _wait_for(step, poller)
            else:
                yield step

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<Async{repr(self._handle)[1:]}"

    def _copy(self) -> JobHandle[R]:
        """Return a handle for one thread, on the job that this one is attached to now."""
        return copy.copy(self._handle)


async def _finish(steps: Steps[T], poller: CompletionPoller) -> T:
    """Do the steps: waits in the event loop, and what reads the database in threads."""
    step = advance(steps)  # to the first condition
    while isinstance(step, WaitCondition):
        found = await _wait_for(step, poller)
        if found is not None and found.status is not None:
            step = advance(steps, found)  # it reads nothing more
        else:
            step = await threads.call(advance, steps, found)
    return step.value


async def _wait_for(condition: WaitCondition, poller: CompletionPoller) -> WaitResult | None:
    """Wait as `CompletionPoller.wait`, without a thread."""
    loop = running_loop()
    wait = poller.begin(condition, at_once=True)
    left = condition.deadline - time.monotonic()
    try:
        async with asyncio.timeout(None if left == math.inf else left) as limit:
            return await asyncio.wrap_future(wait, loop=loop)
    except TimeoutError:
        if not limit.expired():
            raise
        return None
    finally:
        poller.end(wait)
