"""The JSON documents of ``--json``, one a line. They are public: fields are added, never renamed.

Times are ISO 8601 in UTC, durations are seconds, statuses are OMERO's words; an unknown value is null. The
help of each command says which documents it prints.
"""

from datetime import UTC, datetime
from typing import Any

from ..models import Event, JobRecord
from ..store import Tally, WorkerSeen


def time_value(value: object) -> str | None:
    """Return a time; None for None."""
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else None


def job_document(job: JobRecord) -> dict[str, Any]:
    """Return a job without its arguments and its result, which may be long or private."""
    error = job.error
    return {
        "id": job.id,
        "task": job.task,
        "task_id": job.task_id,
        "kind": job.kind,
        "root_id": job.root_id,
        "parent_id": job.parent_id,
        "status": str(job.status),
        "blocked": job.blocked,
        "message": job.message,
        "username": job.username,
        "groupname": job.groupname,
        "queue": job.queue,
        "priority": job.priority,
        "unique_key": job.unique_key,
        "submitted": time_value(job.submitted),
        "scheduled_for": time_value(job.scheduled_for),
        "expires": time_value(job.expires),
        "started": time_value(job.started),
        "finished": time_value(job.finished),
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "worker": job.worker,
        "progress": vars(job.progress) if job.progress else None,
        "cancel_requested": time_value(job.cancel_requested),
        "error": {"kind": error.kind, "type": error.type, "message": error.message} if error else None,
    }


def status_document(job: JobRecord) -> dict[str, Any]:
    """Return the id and the status of a job."""
    return {"id": job.id, "status": str(job.status)}


def event_document(event: Event) -> dict[str, Any]:
    """Return one event of a job's history."""
    return {
        "at": time_value(event.at),
        "status": str(event.status),
        "attempt": event.attempt,
        "message": event.message,
        "actor": event.actor,
        "computed": event.computed,
    }


def worker_document(worker: WorkerSeen) -> dict[str, Any]:
    """Return a worker and the jobs that it runs."""
    return {
        "name": worker.name,
        "pid": worker.pid,
        "started": time_value(worker.started),
        "lease_until": time_value(worker.lease_until),
        "alive": worker.alive,
        "jobs": [job_document(job) for job in worker.jobs],
    }


def count_document(count: Tally) -> dict[str, Any]:
    """Return the count of one task's jobs in one status."""
    return {"status": str(count.status), "count": count.count, "oldest": time_value(count.oldest)}
