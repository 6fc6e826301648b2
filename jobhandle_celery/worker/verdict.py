"""What Celery's events call the status that a body has left its job in. May import model and below.

Two tell of it, in the same words: a worker, of a body that cannot say so itself, and ``replay-events``, of
what has been.
"""

from typing import Any

from celery import states
from celery.utils.saferepr import saferepr

from ..models import JobRecord
from ..status import JobStatus


def verdict(
    status: JobStatus | None, because: str, job: JobRecord | None = None, runtime: float | None = None
) -> tuple[str, dict[str, Any]]:
    """Return the event that leaves a task in the state that its row is in, and the event's fields.

    `because` is the row's message, or that of the move; the job knows result and error; the runtime, in
    seconds, is None of one that was not running.
    """
    match status:
        case JobStatus.FINISHED:
            return "task-succeeded", {"result": saferepr(job.result) if job else "", "runtime": runtime}
        case JobStatus.ERROR:
            error = job.error if job else None
            # As Celery shows what a body has raised.
            raised = f"{error.type}({error.message!r})" if error and error.kind == "task" else because
            return "task-failed", {"exception": raised, "traceback": error.traceback if error else ""}
        case JobStatus.CANCELLED:
            terminated = runtime is not None
            # The state is given because Flower lets no REVOKED come after a state of ours, PROGRESS.
            told = {"terminated": terminated, "signum": None, "expired": False, "state": states.REVOKED}
            return "task-revoked", told
        case _:
            return "task-retried", {"exception": because, "traceback": ""}
