"""Jobs that have ended and are not settled, and how a test leaves some."""

import pytest
from sqlalchemy import select

from jobhandle_celery.schema import job
from jobhandle_celery.store import Database, settling


def leave_unsettled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what a settle has read hold for the whole test, and no thread settle what waits."""
    monkeypatch.setattr(settling, "CALM", 3600.0)
    monkeypatch.setattr("jobhandle_celery.settler.MAX_WAIT", 3600.0)


def unsettled(database: Database) -> list[int]:
    """Return the ids of the jobs that have ended and are not settled."""
    with database.autocommit() as db:
        return list(db.execute(select(job.c.id).where(job.c.unsettled).order_by(job.c.id)).scalars())
