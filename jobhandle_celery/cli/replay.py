"""``replay-events``: sends the task events of recent jobs again, for a Flower that was restarted.

Flower keeps only the events since its own start. The rows have the history of each job, so the events that
workers and clients sent can be rebuilt, with the times of the row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import click
from celery.utils.saferepr import saferepr

from .. import celery_compat
from ..batching import slices
from ..broker.connection import bounded
from ..broker.messages import kwargs_shown
from ..status import JobStatus
from ..store import JobDetails
from ..worker.events import event_of_status
from . import params
from .context import CommandContext, command
from .exit_codes import CommandError, ExitCode

NO_WORKER = "no-worker@jobs"
"""The worker that Flower shows for a job that was never claimed."""

BATCH_SIZE = 100
"""Jobs read just before their events are sent, so that the events are up to date."""


@dataclass(frozen=True)
class TaskEvent:
    """An event as a worker or a client would have sent it; `at` is a Unix time."""

    type: str
    hostname: str
    at: float
    fields: dict[str, Any]


@command(
    "replay-events",
    examples={
        "replay-events --since 1h": "after Flower was restarted",
        "replay-events --since 1d --limit 1000": "the newest thousand jobs",
    },
    exit_codes="0 sent, 2 wrong usage, 5 database or broker unavailable.",
    json='{"jobs": N, "events": N}',
)
@click.option("--since", type=params.DURATION, required=True, help="Jobs with an event within: 1h.")
@click.option("--limit", type=click.IntRange(1), default=10_000, show_default=True, help="Maximum of jobs.")
def replay_events(context: CommandContext, since: timedelta, limit: int) -> None:
    """Send the task events of recent jobs again, for a restarted Flower.

    The events have the times of the rows. A Flower that knows them already shows no difference. A program
    that counts events must skip those with the field replayed: true.
    """
    context.require_jobs()
    connection, retry_policy = bounded(context.app)
    connection.ensure_connection(**retry_policy)
    dispatcher = context.app.events.Dispatcher(connection, enabled=True, buffer_while_offline=False)
    jobs = events = 0
    try:
        job_ids = context.store.diagnostics.touched_within(since, limit)
        for part in slices(job_ids, BATCH_SIZE):
            for details in context.store.diagnostics.details_of(part):
                jobs += 1
                for event in task_events(context.app, details):
                    dispatcher.hostname = event.hostname
                    fields = {"timestamp": event.at, **event.fields, "replayed": True}
                    dispatcher.send(event.type, uuid=details.job.task_id, **fields)
                    events += 1
    except (*connection.connection_errors, *connection.channel_errors) as error:
        raise CommandError(f"the broker became unavailable: {error}", ExitCode.UNAVAILABLE) from error
    finally:
        celery_compat.disconnect(connection)
    context.output.result({"jobs": jobs, "events": events}, f"sent {events:,} events of {jobs:,} jobs")


def task_events(app: Any, details: JobDetails) -> Iterator[TaskEvent]:
    """Return the events since the last resubmit: the task id is that round's."""
    job = details.job
    resubmits = [index for index, event in enumerate(details.events) if event.status is JobStatus.RESUBMITTED]
    description = _description(app, details)
    retries = 0
    started = None
    for event in details.events[resubmits[-1] if resubmits else 0 :]:
        at = event.at.timestamp()
        worker = event.actor.removeprefix("worker ") if event.actor.startswith("worker ") else None
        match event.status:
            case JobStatus.RESUBMITTED | JobStatus.SUBMITTED | JobStatus.WAITING if not started:
                fields = {**description, **_route(details), "retries": 0}
                yield TaskEvent("task-sent", NO_WORKER, at, fields)
            case JobStatus.RUNNING if started is None:
                started = event.at
                fields = {**description, "retries": retries}
                yield TaskEvent("task-received", worker or NO_WORKER, at, fields)
                yield TaskEvent("task-started", worker or NO_WORKER, at, {})
            case JobStatus.REQUEUED:
                retries, started = retries + 1, None
                kind, fields = event_of_status(event.status, event.message)
                yield TaskEvent(kind, worker or job.worker or NO_WORKER, at, fields)
            case status if status.final:
                runtime = (event.at - started).total_seconds() if started else None
                kind, fields = event_of_status(event.status, event.message, job, runtime)
                yield TaskEvent(kind, worker or job.worker or NO_WORKER, at, fields)


def _description(app: Any, details: JobDetails) -> dict[str, Any]:
    job, routing = details.job, details.internals.routing
    args, kwargs = job.shown_arguments
    argsrepr, kwargsrepr = routing.get("argsrepr"), routing.get("kwargsrepr")
    return {
        "name": routing.get("shadow") or job.task,
        "args": argsrepr if isinstance(argsrepr, str) else saferepr(args, app.amqp.argsrepr_maxsize),
        "kwargs": kwargs_shown(
            job.id,
            kwargs,
            kwargsrepr if isinstance(kwargsrepr, str) else None,
            app.amqp.kwargsrepr_maxsize,
        ),
        "root_id": routing.get("root_id") or job.task_id,
        "parent_id": routing.get("parent_id"),
        "eta": None,
        "expires": None,
    }


def _route(details: JobDetails) -> dict[str, Any]:
    routing = details.internals.routing
    return {
        "queue": details.job.queue,
        "exchange": routing.get("exchange") or "",
        "routing_key": routing.get("routing_key") or details.job.queue,
    }
