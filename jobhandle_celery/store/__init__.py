"""Every SQL statement there is; one verb per move. May import schema and below; knows nothing of Celery.

A verb's guard is in the statement that makes the move, and its docstring says who may have been there
first. Verbs decline, they do not raise: no row back means that somebody else was faster, an ordinary
result. Four rooms: `submitting`, `running` (a worker's verbs), `acting` (anyone's), `sweeping`; beside
them `reading`, the `door` to the database, `moves` (how a move is written) and `rows` (what goes in and out).
"""

from .door import Door, engine_maker
from .reading import Reading
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
    "Door",
    "Lost",
    "NewJob",
    "Outgoing",
    "Refusal",
    "Refused",
    "Run",
    "Seat",
    "Selection",
    "Standing",
    "Store",
    "Submitted",
    "Worker",
    "engine_maker",
]


class Store(Submitting, Sweeping, Reading):
    """The verbs of all rooms, behind one door."""
