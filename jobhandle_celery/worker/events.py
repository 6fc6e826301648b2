"""Events about jobs for Flower and other monitors, besides those that Celery sends.

Celery's events report what a main process sees of its tasks: nothing of a lost worker, nor of progress. No
promise rests on an event. They leave through the worker's own event dispatcher, in its event loop: in order
with Celery's, and only if the worker sends events.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from billiard.exceptions import WorkerLostError
from celery import states
from celery.utils.saferepr import saferepr
from celery.worker import state

from .. import internal_errors
from ..broker.connection import BrokerConnection
from ..models import JobRecord
from ..status import JobStatus
from ..store import ChangedJob, MessageKey, RunSnapshot
from .request import JobRequest

logger = logging.getLogger(__name__)


class EventSender:
    """Sends one worker's events about jobs."""

    def __init__(self, worker: Any, progress: bool = True) -> None:
        """Send nothing yet; without `progress` no ``task-progress`` is sent, which some exporters reject."""
        self._worker = worker
        self._progress = progress
        self._last_progress: dict[MessageKey, object] = {}

    def send_changed(self, job: ChangedJob) -> None:
        """Send an event with the status of a job that its body's process has not changed itself."""
        self._soon(self._send, *_event(job, *event_of_status(job.status, job.reason)))

    def send_status(self, job: JobRecord) -> None:
        """Send the status of a job whose process was lost after it had written its outcome."""
        self._soon(self._send, *_event(job, *_event_of_record(job)))

    def send_at_shutdown(self, jobs: Iterable[JobRecord]) -> None:
        """Send the status of jobs that a shutdown cut off, when the event loop has ended."""
        connection = BrokerConnection(self._worker.app)
        try:
            connection.send_events(
                self._worker.hostname, [_event(job, *_event_of_record(job)) for job in jobs]
            )
        except connection.errors as error:
            logger.warning("events of the jobs that were cut off at shutdown were not sent: %s", error)
        finally:
            connection.close()

    def send_progress(self, snapshots: Sequence[RunSnapshot], requests: Sequence[JobRequest]) -> None:
        """Send progress and messages of running jobs, if they have changed since the last call.

        Nothing is sent while the worker has no broker, for then its event loop stands still: afterwards it
        sends the latest progress, and not each step before.
        """
        if not self._progress or getattr(self._worker.consumer, "connection", None) is None:
            return
        running = {request.key: request for request in requests}
        before, self._last_progress = self._last_progress, {}
        for snapshot in snapshots:
            key = snapshot.job_id, snapshot.task_id, snapshot.attempt
            if (request := running.get(key)) is None:
                continue
            self._last_progress[key] = latest = snapshot.message, snapshot.progress
            if latest != before.get(key, (snapshot.message, None)):
                self._soon(self._send_progress, request, snapshot)

    def _soon(self, send: Callable[..., None], *args: Any) -> None:
        consumer = self._worker.consumer
        if consumer is not None:
            consumer.call_soon(_harmless, send, *args)

    def _send(self, kind: str, fields: dict[str, Any]) -> None:
        dispatcher = self._worker.consumer.event_dispatcher
        if dispatcher is not None and dispatcher.enabled:
            dispatcher.send(kind, **fields)

    def _send_progress(self, request: JobRequest, snapshot: RunSnapshot) -> None:
        if request not in state.active_requests:
            return  # it has ended, and the event of its end has been sent
        progress = snapshot.progress
        fraction = None if progress is None else progress.fraction
        percentage = None if fraction is None else round(100 * fraction)
        shown = "" if percentage is None else f"{percentage} %"
        request.send_event(
            "task-progress",
            message=snapshot.message,
            current=None if progress is None else progress.current,
            total=None if progress is None else progress.total,
            percentage=percentage,
            # The one field of these that Flower shows.
            result=": ".join(word for word in (shown, snapshot.message) if word),
        )


def event_of_status(
    status: JobStatus | None, reason: str, job: JobRecord | None = None, runtime: float | None = None
) -> tuple[str, dict[str, Any]]:
    """Return the event that leaves a task in the state of its row, and the event's fields.

    `runtime` is in seconds; None if no body was running.
    """
    match status:
        case JobStatus.FINISHED:
            return "task-succeeded", {"result": saferepr(job.result) if job else "", "runtime": runtime}
        case JobStatus.ERROR:
            error = job.error if job else None
            # As Celery shows what a body has raised: monitors read the class from it.
            raised = f"{error.type}({error.message!r})" if error else reason
            if job is None:  # that of a `ChangedJob`
                raised = f"{WorkerLostError.__name__}({reason!r})"
            return "task-failed", {"exception": raised, "traceback": error.traceback if error else ""}
        case JobStatus.CANCELLED:
            fields = {"terminated": runtime is not None, "signum": None, "expired": False}
            # After PROGRESS, a state that Flower does not know, it ignores a REVOKED without this field.
            return "task-revoked", {**fields, "state": states.REVOKED}
        case _:
            return "task-retried", {"exception": reason, "traceback": ""}


def _event(job: ChangedJob | JobRecord, kind: str, fields: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return kind, {"uuid": job.task_id, "name": job.task, **fields}


def _event_of_record(job: JobRecord) -> tuple[str, dict[str, Any]]:
    ran = job.finished - job.started if job.finished and job.started else None
    reason = job.error.message if job.error else "its worker cut it off"
    return event_of_status(job.status, reason, job, None if ran is None else ran.total_seconds())


def _harmless(send: Callable[..., None], *args: Any) -> None:
    try:
        send(*args)
    except Exception as error:
        # This runs in the worker's event loop, which must not end because of an event.
        internal_errors.log("sending an event", error, "monitors miss it")
