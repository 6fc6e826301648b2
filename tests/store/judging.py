"""What a row must look like, what may follow what: the state machine's judgements of one job."""

from datetime import timedelta

from jobhandle_celery.status import MOVES, STARTABLE, JobStatus
from tests.store.bench import Row
from tests.store.model import RUNNING, ModelJob

CLOSE = timedelta(seconds=25)
"""How far the database's clock may run ahead of the model's within one example."""


def compare(row: Row, expected: ModelJob, now: float) -> None:
    found = {
        "status": row["status_id"],
        "task_id": row["task_id"],
        "attempt": row["attempt"],
        "losses": row["losses"],
        "stamped": row["cancel_requested"] is not None,
        "terminate": row["terminate"],
        "told": row["revoke_told"],
        "started": row["started"] is not None,
        "boot": row["boot_id"],
    }
    assert found == {name: getattr(expected, name) for name in found}
    assert (row["finished"] is not None) == row["status_id"].final
    assert (row["unique_slot"] is not None) == (expected.key is not None and not row["status_id"].final)
    for name, moment in (("due_at", expected.due), ("not_before", expected.not_before)):
        assert (row[name] is None) == (moment is None), name
        if moment is not None:
            ahead = timedelta(minutes=moment - now)
            assert -CLOSE < row[name] - row["now"] - ahead < timedelta(seconds=1), name


def follows(before: Row | None, after: Row) -> None:
    """Make sure of what is never so, whatever the model says."""
    if before is None:
        return
    assert after["attempt"] >= before["attempt"]
    if before["status_id"].final and after["status_id"] is not before["status_id"]:
        assert after["status_id"] is JobStatus.RESUBMITTED
        assert after["task_id"] != before["task_id"]


def legal(before: JobStatus, after: JobStatus) -> bool:
    """Say whether the table of moves leads from one event to the next; Queued in between has none."""
    if (before, after) == (RUNNING, RUNNING):
        return True  # asked to stop
    sources = {before} | ({JobStatus.QUEUED} if before in STARTABLE else set())
    return any(move.sources & sources and after in move.targets for move in MOVES.values())
