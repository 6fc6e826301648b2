"""The JSON documents that ``--json`` prints. They are part of the interface: fields are added, not renamed.

Moments are ISO 8601 in UTC, durations are seconds, statuses OMERO's words; what is not known is null.

======================  ====================================================================================
command                 prints
======================  ====================================================================================
submit                  ``{"id", "status"}``; with ``--wait`` the `job`
list                    a `job` a line
show                    the `job`, with ``args``, ``kwargs``, ``result``, ``meta``, ``why``, ``events``
watch                   a `job` a line, whenever one has changed
wait                    the `job` a line, in the order given, each as soon as it has ended
cancel                  ``{"id", "status"}`` a line; by filters ``{"cancelled": N}``
resubmit, release       ``{"id", "status"}`` a line
stats, top              ``{"at", "window", "unfinished", "tasks": [...], "workers": [...]}``; top one a line
upgrade                 ``{"revision"}``
sweep                   ``{"made"}``; with ``--forever`` one a line for each pass that it made
prune                   ``{"pruned": N}``
doctor                  a `finding` a line: ``{"check", "level", "promises", "says", "set"}``
replay-events           ``{"jobs": N, "events": N}``
======================  ====================================================================================
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from ..models import Event, JobRecord
from ..store import Tally, WorkerSeen


def moment(value: object) -> str | None:
    """Return a moment; None for None."""
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else None


def seconds(value: timedelta | None) -> float | None:
    """Return a duration; None for None."""
    return None if value is None else value.total_seconds()


def job(one: JobRecord) -> dict[str, Any]:
    """Return a job without what it was given and what it returned, which may be long or private."""
    return {
        "id": one.id,
        "task": one.task,
        "task_id": one.task_id,
        "status": str(one.status),
        "message": one.message,
        "username": one.username,
        "groupname": one.groupname,
        "queue": one.queue,
        "priority": one.priority,
        "unique_key": one.unique_key,
        "submitted": moment(one.submitted),
        "scheduled_for": moment(one.scheduled_for),
        "expires": moment(one.expires),
        "started": moment(one.started),
        "finished": moment(one.finished),
        "attempt": one.attempt,
        "max_attempts": one.max_attempts,
        "worker": one.worker,
        "progress": vars(one.progress) if one.progress else None,
        "cancel_requested": moment(one.cancel_requested),
        "error": {"kind": one.error.kind, "type": one.error.type, "message": one.error.message}
        if one.error
        else None,
    }


def event(one: Event) -> dict[str, Any]:
    """Return one line of a job's history."""
    return {
        "at": moment(one.at),
        "status": str(one.status),
        "attempt": one.attempt,
        "message": one.message,
        "actor": one.actor,
    }


def worker(one: WorkerSeen) -> dict[str, Any]:
    """Return a worker and what it runs."""
    return {
        "name": one.name,
        "pid": one.pid,
        "started": moment(one.started),
        "lease_until": moment(one.lease_until),
        "alive": one.alive,
        "jobs": [job(each) for each in one.jobs],
    }


def tally(one: Tally) -> dict[str, Any]:
    """Return a count of jobs of one task in one status."""
    return {"status": str(one.status), "count": one.count, "oldest": moment(one.oldest)}


def standing(one: JobRecord) -> dict[str, Any]:
    """Return the least that a verb says of a job."""
    return {"id": one.id, "status": str(one.status)}


def with_events(one: Mapping[str, Any], events: list[Event]) -> dict[str, Any]:
    """Return a job's document with its history."""
    return {**one, "events": [event(each) for each in events]}
