"""Adoption: an existing job becomes a member of a tree, because it has the unique key of that member.

`Trees` inserts the node above such a member blocked, with a need for each job to adopt, and without a
`needs_when`. Once the tree is committed, the row of the job is changed, and the node is unblocked.
"""

import logging
from typing import Any

from sqlalchemy import Row, and_, delete, or_, select, update

from ..schema import job, job_need
from ..status import JobStatus
from .dependencies import BLOCKED, IS_NODE
from .executors import Executor

logger = logging.getLogger(__name__)


def is_adopting(row: Row[Any]) -> bool:
    """Return True if the need of a row stands for a job to adopt."""
    return row.kind is not None and row.needs_when is None and row.needs_id is not None


def adopt(db: Executor, row: Row[Any]) -> None:
    """Make the job `needs_id` a child of the node; if that is not possible, delete the need.

    Who may have been there first: another call for the same row, or another tree.
    """
    root_id = row.root_id or row.id
    place = {"root_id": root_id, "parent_id": row.id, "position": row.position, "needed": True}
    free = or_(job.c.root_id.is_(None), job.c.parent_id == row.id)
    if not db.execute(update(job).where(job.c.id == row.needs_id, free).values(**place)).rowcount:
        refused = (job_need.c.job_id == row.id) & (job_need.c.needs_id == row.needs_id)
        db.execute(delete(job_need).where(refused))
        logger.warning(
            "job %s has the unique_key of a member of job %s, and is not made that member: "
            "it belongs to another tree, or was deleted; job %s ends without it",
            row.needs_id,
            row.id,
            row.id,
        )


def unblock(db: Executor, node_id: int) -> None:
    """Unblock a node that has adopted its members."""
    values = {"blocked": False, "status_id": JobStatus.SUBMITTED, "due_at": None}
    db.execute(update(job).where(job.c.id == node_id, BLOCKED).values(**values))


def adopt_all(db: Executor, root_id: int) -> None:
    """Adopt all jobs that are to be members of a tree, and unblock its nodes."""
    of_tree = or_(job.c.id == root_id, job.c.root_id == root_id)
    adopting = and_(of_tree, IS_NODE, BLOCKED, job.c.needs_when.is_(None))
    needs = (job_need.c.needs_id, job_need.c.position)
    rows = db.execute(
        select(job.c.id, job.c.root_id, *needs)
        .join(job_need, job_need.c.job_id == job.c.id)
        .where(adopting)
        .order_by(job_need.c.needs_id)
    ).all()
    for row in rows:
        adopt(db, row)
    for node_id in sorted({row.id for row in rows}):
        unblock(db, node_id)
