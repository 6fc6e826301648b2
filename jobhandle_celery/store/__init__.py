"""Every SQL statement there is; one verb per move. May import schema and below; knows nothing of Celery.

A verb's guard is in the statement that makes the move, and its docstring says who may have been there
first. Verbs decline, they do not raise: no row back means that somebody else was faster, an ordinary
result. Four rooms: `submitting`, `running` (a worker's verbs), `acting` (anyone's), `sweeping`; beside
them what only looks (`reading`, `paging`, `overview`, `inspecting`), the `door` to the database, `moves` (how
a move is written) and `rows` (what goes in and out).
"""

from .after_commit import Attached
from .door import Door, engine_maker
from .forks import gate
from .inspecting import Inside, Inspecting, Sight, Stuck, Trouble
from .overview import Passes, Tally, WorkerSeen
from .paging import Page, Window
from .repeats import briefly
from .rows import (
    Lost,
    NewJob,
    Outgoing,
    Refusal,
    Refused,
    Run,
    Seat,
    Selection,
    Standing,
    Submitted,
    Worker,
)
from .submitting import Submitting
from .sweeping import DAMPED_AT_MOST, Sweeping

__all__ = [
    "DAMPED_AT_MOST",
    "Attached",
    "Door",
    "Inside",
    "Lost",
    "NewJob",
    "Outgoing",
    "Page",
    "Passes",
    "Refusal",
    "Refused",
    "Run",
    "Seat",
    "Selection",
    "Sight",
    "Standing",
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
