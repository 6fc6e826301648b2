"""What Flower and its like hear of jobs beside what Celery tells them. May import verdict and below.

Celery's events tell what a main process sees of its tasks: nothing of a worker that was lost, nor of
progress. Events are for watching alone; no promise rests on one. They leave through the worker's own event
dispatcher, in its event loop: so they come in order with Celery's, and only if somebody wants events.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from celery.worker import state

from .. import internal_errors
from ..broker.connection import BrokerConnection
from ..models import JobRecord
from ..store import Lost, RunSnapshot
from .request import JobRequest
from .verdict import verdict

logger = logging.getLogger(__name__)


class EventSender:
    """Everybody who captures events of one worker; there may be nobody."""

    def __init__(self, worker: Any, progress: bool = True) -> None:
        """Make one; without `progress` no ``task-progress`` is sent, which some exporters do not bear."""
        self._worker = worker
        self._progress = progress
        self._said: dict[tuple[int, str, int], object] = {}

    def hear_of(self, lost: Lost) -> None:
        """Tell what became of a job whose body is gone: nobody else tells that."""
        self._soon(self._send, *_told(lost, *verdict(lost.status, lost.because)))

    def hear_how(self, job: JobRecord) -> None:
        """Tell how a job stands whose process was lost after it had written its outcome."""
        self._soon(self._send, *_told(job, *_as_it_stands(job)))

    def hear_at_last(self, jobs: Iterable[JobRecord]) -> None:
        """Tell how jobs stand whose bodies were cut off at a shutdown, when the event loop has ended."""
        line = BrokerConnection(self._worker.app)
        try:
            line.send_events(self._worker.hostname, [_told(job, *_as_it_stands(job)) for job in jobs])
        except line.errors as error:
            logger.warning("those who watch were not told of the shutdown: %s", error)
        finally:
            line.close()

    def hear_progress(self, standings: Sequence[RunSnapshot], requests: Sequence[JobRequest]) -> None:
        """Tell how far bodies are, and what they say, if that has changed since the last time.

        Not while the worker has no broker, for then its event loop stands still: they are told afterwards
        how far they are by then, and not of each step before.
        """
        if not self._progress or getattr(self._worker.consumer, "connection", None) is None:
            return
        running = {request.key: request for request in requests}
        before, self._said = self._said, {}
        for one in standings:
            key = one.job_id, one.task_id, one.attempt
            if (request := running.get(key)) is None:
                continue
            self._said[key] = said = one.message, one.progress
            if said != before.get(key, (one.message, None)):
                self._soon(self._send_progress, request, one)

    def _soon(self, send: Callable[..., None], *args: Any) -> None:
        consumer = self._worker.consumer
        if consumer is not None:
            consumer.call_soon(_harmless, send, *args)

    def _send(self, kind: str, fields: dict[str, Any]) -> None:
        publisher = self._worker.consumer.event_dispatcher
        if publisher is not None and publisher.enabled:
            publisher.send(kind, **fields)

    def _send_progress(self, request: JobRequest, standing: RunSnapshot) -> None:
        if request not in state.active_requests:
            return  # it has ended, and the result that is shown by now is not to be written over
        progress = standing.progress
        fraction = None if progress is None else progress.fraction
        percentage = None if fraction is None else round(100 * fraction)
        shown = "" if percentage is None else f"{percentage} %"
        request.send_event(
            "task-progress",
            message=standing.message,
            current=None if progress is None else progress.current,
            total=None if progress is None else progress.total,
            percentage=percentage,
            # The one field of these that Flower shows.
            result=": ".join(word for word in (shown, standing.message) if word),
        )


def _told(of: Lost | JobRecord, kind: str, fields: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return kind, {"uuid": of.task_id, "name": of.task, **fields}


def _as_it_stands(job: JobRecord) -> tuple[str, dict[str, Any]]:
    ran = job.finished - job.started if job.finished and job.started else None
    because = job.error.message if job.error else "its worker cut it off"
    return verdict(job.status, because, job, None if ran is None else ran.total_seconds())


def _harmless(send: Callable[..., None], *args: Any) -> None:
    try:
        send(*args)
    except Exception as error:
        # In the worker's event loop, for whose sake nobody watches.
        internal_errors.log("sending an event", error, "those who watch miss it")
