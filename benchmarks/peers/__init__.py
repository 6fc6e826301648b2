"""The compared systems behind one interface, each with the settings that its documentation recommends."""

from .callers import Durable, PlainBeside
from .celery_peers import Bare, DjangoResults, RedisResults, SqlalchemyResults
from .claiming_peer import Claiming
from .dramatiq_peer import Dramatiq
from .ours import Ours
from .peer import Peer, Sandbox
from .procrastinate_peer import Procrastinate
from .rq_peer import Rq

ALL: list[type[Peer]] = [
    Bare,
    RedisResults,
    SqlalchemyResults,
    DjangoResults,
    Ours,
    Procrastinate,
    Rq,
    Dramatiq,
]

OF_CALLS: list[type[Peer]] = [PlainBeside, Durable]
"""Of this library alone, below Celery's own calls."""

__all__ = [
    "ALL",
    "OF_CALLS",
    "Bare",
    "Claiming",
    "DjangoResults",
    "Dramatiq",
    "Durable",
    "Ours",
    "Peer",
    "PlainBeside",
    "Procrastinate",
    "RedisResults",
    "Rq",
    "Sandbox",
    "SqlalchemyResults",
]
