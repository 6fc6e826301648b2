"""Every SQL statement there is; one verb per move. May import schema and below; knows nothing of Celery.

A verb's guard is in the statement that makes the move, and its docstring says who may have been there
first. Verbs decline, they do not raise: no row back means that somebody else was faster, an ordinary
result. Four rooms: `submitting`, `running` (a worker's verbs), `acting` (anyone's), `sweeping`; beside
them what only looks (`reading`, `paging`, `overview`, `inspecting`), the `door` to the database, `moves` (how
a move is written) and `rows` (what goes in and out).
"""

from .after_commit import Attached
from .database import Database, engine_maker
from .diagnostics import Inside, Inspecting, Sight, Stuck, Trouble
from .fork_guard import gate
from .pages import Page, Window
from .publish import Submitting
from .records import (
    ClaimRejected,
    Lost,
    NewJob,
    PendingMessage,
    ProcessRef,
    Refusal,
    Run,
    RunSnapshot,
    Selection,
    Submitted,
    Worker,
)
from .retrying import briefly
from .stats import Passes, Tally, WorkerSeen
from .sweep import DAMPED_AT_MOST, Sweeping

__all__ = [
    "DAMPED_AT_MOST",
    "Attached",
    "ClaimRejected",
    "Database",
    "Inside",
    "Lost",
    "NewJob",
    "Page",
    "Passes",
    "PendingMessage",
    "ProcessRef",
    "Refusal",
    "Run",
    "RunSnapshot",
    "Selection",
    "Sight",
    "Store",
    "Stuck",
    "Submitted",
    "Tally",
    "Trouble",
    "Window",
    "Worker",
    "WorkerSeen",
    "briefly",
    "engine_maker",
    "gate",
]


class Store(Submitting, Sweeping, Inspecting):
    """The verbs of all rooms, behind one door."""
