"""Jobs in words: the row of a list, how a job ended, and why it has its status."""

from datetime import datetime

from ..models import JobRecord
from ..status import JobStatus
from ..store import JobDetails
from .formatting import format_duration, format_progress, format_time, one_line
from .output.layout import Cell, ProgressCell

NEEDS_SHOWN = 3
"""Jobs named of those that a blocked job needs."""

COLUMNS = ("ID", "STATUS", "TASK", "USER", "AGE", "ATTEMPT", "PROGRESS", "MESSAGE")
"""Of a list of jobs; AGE is the time since the submit."""


def job_row(job: JobRecord, now: datetime) -> list[Cell]:
    """Return the cells of a job, one for each of `COLUMNS`."""
    return [
        str(job.id),
        str(job.status),
        job.task,
        job.username or "-",
        format_duration(now - job.submitted),
        str(job.attempt),
        progress_cell(job, bar=job.status is JobStatus.RUNNING),
        job.message,
    ]


def progress_cell(job: JobRecord, *, bar: bool = True) -> ProgressCell:
    """Return the progress of a job."""
    fraction = job.progress.fraction if job.progress and bar else None
    return ProgressCell(format_progress(job.progress), fraction)


def status_line(job: JobRecord) -> str:
    """Return a job's status and message as a line."""
    message = f": {one_line(job.message)}" if job.message else ""
    return f"job {job.id} is {job.status}{message}"


def explain_status(details: JobDetails) -> str:
    """Return why a job has its status, and what happens next."""
    job, inside = details.job, details.internals
    match job.status:
        case JobStatus.WAITING if job.blocked:
            return _explain_blocked(details)
        case JobStatus.SUBMITTED | JobStatus.RUNNING | JobStatus.RESUBMITTED if job.kind is not None:
            return _explain_node(details)
        case JobStatus.WAITING if inside.not_before is None:
            return "held until release"
        case JobStatus.WAITING:
            return f"scheduled for {format_time(inside.not_before)}"
        case JobStatus.QUEUED:
            published = "once" if inside.publish_count == 1 else f"{inside.publish_count} times"
            return (
                f"published {published}, last {format_duration(inside.now - _last_event(details))} ago, "
                f"to the queue {job.queue}; no worker has claimed it; {_next_sweep(details)}"
            )
        case JobStatus.RUNNING:
            return _explain_running(details)
        case JobStatus.REQUEUED if inside.not_before is not None and inside.not_before > inside.now:
            return f"the next attempt is scheduled for {format_time(inside.not_before)}"
        case JobStatus.FINISHED | JobStatus.ERROR | JobStatus.CANCELLED:
            reason = details.events[-1].message if details.events else "-"
            unsettled = f"; what depends on it is not settled yet: {_next_sweep(details)}"
            return reason + (unsettled if inside.unsettled else "")
        case _:
            return f"not published yet; {_next_sweep(details)}"


def _explain_blocked(details: JobDetails) -> str:
    pending = [need for need in details.needs if need.status is None or not need.status.final]
    if not pending:
        return f"all jobs that it needs have ended; {_next_sweep(details)}"
    shown = [f"job {need.job_id} ({need.status or 'gone'})" for need in pending[:NEEDS_SHOWN]]
    more = f" and {len(pending) - NEEDS_SHOWN:,} more" if len(pending) > NEEDS_SHOWN else ""
    return f"waits for {', '.join(shown)}{more}"


def _explain_node(details: JobDetails) -> str:
    job, inside = details.job, details.internals
    progress = job.progress
    counted = f"{progress.current:,} of {progress.total:,} members finished" if progress else "no members"
    if job.cancel_requested is None:
        return counted
    return f"{counted}, stop requested {format_duration(inside.now - job.cancel_requested)} ago"


def _explain_running(details: JobDetails) -> str:
    job, inside = details.job, details.internals
    running_for = None if job.started is None else inside.now - job.started
    parts = [f"for {format_duration(running_for)} on {job.worker}"]
    if inside.worker_uid is None:
        parts.append("set to Running by set_status(), without a lease")
    elif inside.lease_until is None:
        parts.append("the worker has no row: the sweeper will recover the job")
    elif inside.lease_until <= inside.now:
        expired = format_duration(inside.now - inside.lease_until)
        parts.append(f"the worker's lease expired {expired} ago: the sweeper will recover the job")
    else:
        parts.append("the worker's lease is valid")
    if job.cancel_requested is not None:
        request = "termination" if inside.terminate else "stop"
        parts.append(f"{request} requested {format_duration(inside.now - job.cancel_requested)} ago")
    return ", ".join(parts)


def _last_event(details: JobDetails) -> datetime:
    return details.events[-1].at if details.events else details.internals.now


def _next_sweep(details: JobDetails) -> str:
    due_at = details.internals.due_at
    if due_at is None:
        return "the sweeper does not look at it again"
    late = details.internals.now - due_at
    if late.total_seconds() > 0:
        return f"the sweeper is {format_duration(late)} late"
    return f"the sweeper looks at it in {format_duration(-late)}"
