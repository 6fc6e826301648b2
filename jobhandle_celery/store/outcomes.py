"""How a run can end, as the columns of its row and the words of its event. No statement is made here."""

from typing import Any

from ..models import Failure
from ..schema import clock
from ..serialization import clip_message
from ..status import JobStatus
from .records import encode_failure
from .transitions import LEFT, final

TOLD: dict[str, Any] = {"revoke_reported": True}
"""The process that stops a body does Celery's bookkeeping of a revoked task itself."""

TAKEN_AWAY: dict[str, Any] = {"claim_id": None}
"""Whoever settles a run in its place takes its claim, or the run would take the outcome for its own."""

ANEW: dict[str, Any] = {**LEFT, "publish_count": 0, "republish_deferrals": 0}
"""A row that waits for its next message."""


def requeued() -> dict[str, Any]:
    """Return a row that is to run again at once, taken from a run that is gone."""
    return {"status_id": JobStatus.REQUEUED, "not_before": None, "due_at": clock(), **ANEW, **TAKEN_AWAY}


def failed(failure: Failure) -> tuple[dict[str, Any], str]:
    """Return a row that ends in Error, and what is said of it."""
    said = clip_message(f"{failure.type}: {failure.message}" if failure.kind == "task" else failure.message)
    return final(JobStatus.ERROR, error=encode_failure(failure), message=said, **LEFT), said


def stopped(message: str) -> tuple[dict[str, Any], str]:
    """Return a row that ends as Cancelled, and what is said of it; an empty message leaves the body's own."""
    said = clip_message(message)
    to = final(JobStatus.CANCELLED, **LEFT)
    return (to | {"message": said} if said else to), said or "stopped on request"
