"""The compared systems behind one interface, each with the settings that its documentation recommends."""

from .celery_peers import Bare, DjangoResults, RedisResults, SqlalchemyResults
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

__all__ = [
    "ALL",
    "Bare",
    "DjangoResults",
    "Dramatiq",
    "Ours",
    "Peer",
    "Procrastinate",
    "RedisResults",
    "Rq",
    "Sandbox",
    "SqlalchemyResults",
]
