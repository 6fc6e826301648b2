"""``replay-events``: what a Flower that was started anew has missed. May import desk and below.

Flower knows what it has heard since its start. The rows know what has happened, so the events that Celery's
workers sent of a job can be sent again, with the times of the row, to whoever listens at the broker.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import click
from celery.utils.saferepr import saferepr

from ..broker.connection import bounded
from ..broker.messages import kwargs_shown
from ..models import JobRecord
from ..status import JobStatus
from ..store import Sight
from ..worker.verdict import verdict
from . import params
from .context import Desk, verb
from .exit_codes import Exit, Said

NOBODY = "nobody@jobs"
"""Whom Flower names as the worker of a job that ended without having met one."""

BATCH = 100
"""Jobs read at a time, just before their events go out: what has happened since is not told wrong."""


@dataclass(frozen=True)
class Told:
    """An event as Celery's workers, or a client, would have sent it."""

    kind: str
    hostname: str
    at: float
    fields: dict[str, Any]


@verb(
    "replay-events",
    examples={
        "replay-events --since 1h": "after Flower was restarted",
        "replay-events --since 1d --limit 1000": "the newest thousand of them",
    },
    exits="0 sent, 2 wrong input, 5 database or broker away.",
)
@click.option(
    "--since", type=params.DURATION, required=True, help="Jobs that something happened to since: 1h."
)
@click.option(
    "--limit", type=click.IntRange(1), default=10_000, show_default=True, help="At most so many jobs."
)
def replay_events(desk: Desk, since: timedelta, limit: int) -> None:
    """Tell a restarted Flower what it has missed.

    The task events of recent jobs are sent again, with the times of the rows. A Flower that has heard them
    before shows the same as before. A program that counts events counts these again, unless it leaves out
    those with the field replayed: true.
    """
    jobs = events = 0
    line, publisher = _open(desk)
    try:
        for job_ids in _batches(desk.store.touched_within(since, limit)):
            for sight in desk.store.sights(job_ids):
                jobs += 1
                for told in history(desk.app, sight):
                    publisher.hostname = told.hostname
                    fields = {**told.fields, "replayed": True}
                    publisher.send(told.kind, uuid=sight.job.task_id, timestamp=told.at, **fields)
                    events += 1
    except (*line.connection_errors, *line.channel_errors) as error:
        raise Said(f"the broker does not answer any more: {error}", Exit.AWAY) from error
    finally:
        line.collect()
    desk.out.say({"jobs": jobs, "events": events}, f"{events:,} events of {jobs:,} jobs were sent")


def _open(desk: Desk) -> tuple[Any, Any]:
    desk.expect_jobs()
    line, once = bounded(desk.app)
    line.ensure_connection(**once)
    return line, desk.app.events.Dispatcher(line, enabled=True, buffer_while_offline=False)


def _batches(job_ids: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(job_ids), BATCH):
        yield job_ids[start : start + BATCH]


def history(app: Any, sight: Sight) -> Iterator[Told]:
    """Return the events of a job's latest round: its task id is of that round."""
    job = sight.job
    rounds = [place for place, event in enumerate(sight.events) if event.status is JobStatus.RESUBMITTED]
    described = _described(app, sight)
    retries = 0
    started = None
    for event in sight.events[rounds[-1] if rounds else 0 :]:
        at = event.at.timestamp()
        host = event.actor.removeprefix("worker ") if event.actor.startswith("worker ") else None
        match event.status:
            case JobStatus.RESUBMITTED | JobStatus.SUBMITTED | JobStatus.WAITING if not started:
                yield Told("task-sent", NOBODY, at, {**described, **_route(sight), "retries": 0})
            case JobStatus.RUNNING if started is None:
                started = event.at
                yield Told("task-received", host or NOBODY, at, {**described, "retries": retries})
                yield Told("task-started", host or NOBODY, at, {})
            case JobStatus.REQUEUED:
                retries, started = retries + 1, None
                kind, fields = verdict(event.status, event.message)
                yield Told(kind, host or _worker(job), at, fields)
            case status if status.final:
                runtime = (event.at - started).total_seconds() if started else None
                kind, fields = verdict(event.status, event.message, job, runtime)
                yield Told(kind, host or _worker(job), at, fields)


def _described(app: Any, sight: Sight) -> dict[str, Any]:
    job, routing = sight.job, sight.inside.routing
    args, kwargs = job.shown_arguments
    hidden_args, hidden_kwargs = routing.get("argsrepr"), routing.get("kwargsrepr")
    return {
        "name": routing.get("shadow") or job.task,
        "args": hidden_args if isinstance(hidden_args, str) else saferepr(args, app.amqp.argsrepr_maxsize),
        "kwargs": kwargs_shown(
            job.id,
            kwargs,
            hidden_kwargs if isinstance(hidden_kwargs, str) else None,
            app.amqp.kwargsrepr_maxsize,
        ),
        "root_id": routing.get("root_id") or job.task_id,
        "parent_id": routing.get("parent_id"),
        "eta": None,
        "expires": None,
    }


def _route(sight: Sight) -> dict[str, Any]:
    routing = sight.inside.routing
    return {
        "queue": sight.job.queue,
        "exchange": routing.get("exchange") or "",
        "routing_key": routing.get("routing_key") or sight.job.queue,
    }


def _worker(job: JobRecord) -> str:
    return job.worker or NOBODY
