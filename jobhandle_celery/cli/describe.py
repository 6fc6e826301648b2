"""Jobs in words: what became of one, why it stands where it does, its row in a table. May import words."""

from datetime import datetime

from ..models import JobRecord
from ..status import JobStatus
from ..store import Sight
from .formatting import moment, one_line, progress, span
from .output.layout import Bar, Cell

COLUMNS = ("ID", "STATUS", "TASK", "USER", "AGE", "TRY", "PROGRESS", "MESSAGE")
"""Of a list of jobs."""


def row(job: JobRecord, now: datetime) -> list[Cell]:
    """Return what a list says of a job."""
    age = None if job.submitted is None else now - job.submitted
    fraction = job.progress.fraction if job.progress else None
    return [
        str(job.id),
        str(job.status),
        job.task,
        job.username or "-",
        span(age),
        str(job.attempt),
        Bar(progress(job.progress), fraction if job.status is JobStatus.RUNNING else None),
        job.message,
    ]


def ended(job: JobRecord) -> str:
    """Return how a job ended, or where it stands."""
    said = f": {one_line(job.message)}" if job.message else ""
    return f"job {job.id} is {job.status}{said}"


def why(sight: Sight) -> str:
    """Return why a job is in its status, and what will be next."""
    job, inside = sight.job, sight.inside
    match job.status:
        case JobStatus.WAITING if inside.not_before is None:
            return "held until somebody releases it"
        case JobStatus.WAITING:
            return f"its time is {moment(inside.not_before)}"
        case JobStatus.QUEUED:
            return (
                f"the broker has its message since {span(inside.now - _last(sight))}, "
                f"{_times(inside.publish_count)} sent, in the queue {job.queue}; {_next(sight)}"
            )
        case JobStatus.RUNNING:
            return _running(sight)
        case JobStatus.REQUEUED if inside.not_before is not None and inside.not_before > inside.now:
            return f"its next attempt is due at {moment(inside.not_before)}"
        case JobStatus.FINISHED | JobStatus.ERROR | JobStatus.CANCELLED:
            return sight.events[-1].message if sight.events else "-"
        case _:
            return f"its message is not with the broker yet; {_next(sight)}"


def _running(sight: Sight) -> str:
    job, inside = sight.job, sight.inside
    parts = [f"for {span(None if job.started is None else inside.now - job.started)}, at {job.worker}"]
    if inside.worker_uid is None:
        parts.append("taken by hand, without a lease")
    elif inside.lease_until is None:
        parts.append("whose row is gone: the sweep settles it")
    elif inside.lease_until <= inside.now:
        parts.append(f"whose lease ended {span(inside.now - inside.lease_until)} ago: the sweep settles it")
    else:
        parts.append("whose lease is alive")
    if job.cancel_requested is not None:
        asked = "its process is to be ended" if inside.terminate else "it was asked to stop"
        parts.append(f"{asked} {span(inside.now - job.cancel_requested)} ago")
    return ", ".join(parts)


def _last(sight: Sight) -> datetime:
    return sight.events[-1].at if sight.events else sight.inside.now


def _next(sight: Sight) -> str:
    due = sight.inside.due_at
    if due is None:
        return "nothing looks at it again by itself"
    late = sight.inside.now - due
    if late.total_seconds() > 0:
        return f"the sweep should have looked at it {span(late)} ago"
    return f"the sweep looks at it in {span(-late)}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
