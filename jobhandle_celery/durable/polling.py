"""Waits for results of jobs, as Celery's result backends wait: by polls of the rows."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from celery.exceptions import TimeoutError
from celery.states import PENDING, READY_STATES

DEFAULT_INTERVAL, MIN_INTERVAL = 0.5, 0.01
"""Seconds between two polls: if the caller gives None, and at least. Celery allows an interval of 0."""


def interval_of(given: float | None) -> float:
    """Return the seconds between two polls, for what a caller gives."""
    return max(DEFAULT_INTERVAL if given is None else given, MIN_INTERVAL)


class StateMessages:
    """Calls `on_message` with the metadata of tasks, once for each state that was seen."""

    def __init__(self, on_message: Callable[[dict[str, Any]], object] | None) -> None:
        self._on_message = on_message
        self._seen: dict[str, Any] = {}

    def pass_on(self, task_id: str, meta: dict[str, Any]) -> None:
        """Pass on a state that is not the last one of its task; as from a broker, never PENDING."""
        if self._on_message is None or meta["status"] == PENDING:
            return
        # Of a failure, a new exception is made at each read.
        state = meta["status"], None if meta["status"] in READY_STATES else meta["result"]
        if self._seen.get(task_id) != state:
            self._seen[task_id] = state
            self._on_message(meta)


def ended(
    results: Iterable[Any],
    *,
    job_id_of: Callable[[Any], int],
    final: Callable[[Collection[int]], Collection[int]],
    timeout: float | None,
    interval: float | None,
    on_message: Callable[[dict[str, Any]], object] | None,
    on_interval: Callable[[], object] | None,
    max_polls: int | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the id and metadata of each task once it has ended.

    Args:
        results: Celery's results of jobs.
        job_id_of: Returns the id of the job of a result.
        final: Returns which of these jobs have ended.
        timeout: Seconds; None: no limit.
        interval: Seconds between two polls.
        on_message: Called with the metadata of each state that a poll sees; each poll then reads each job.
        on_interval: Called between two polls.
        max_polls: End after so many polls, whatever has not ended; None: no limit.

    Raises:
        TimeoutError: Celery's.
    """
    until = None if timeout is None else time.monotonic() + timeout
    messages, polls = StateMessages(on_message), 0
    waiting = {job_id_of(result): result for result in results}
    while waiting:
        for job_id in [*waiting] if on_message else final(waiting.keys()):
            result = waiting[job_id]
            meta = result._get_task_meta()
            messages.pass_on(result.id, meta)
            if meta["status"] in READY_STATES:
                del waiting[job_id]
                yield result.id, meta
        polls += 1
        if not waiting or polls == max_polls:
            return
        left = interval_of(interval)
        if until is not None:
            left = min(left, until - time.monotonic())
        if left <= 0:
            raise TimeoutError(f"Operation timed out ({timeout})")
        if on_interval:
            on_interval()
        time.sleep(left)
