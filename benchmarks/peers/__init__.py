"""The contestants, each at its own best documented settings, behind one interface."""

from .celery_peers import Bare, DjangoResults, RedisResults, SqlalchemyResults
from .dramatiq_peer import Dramatiq
from .ours import Ours
from .peer import Peer, Place
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
    "Place",
    "Procrastinate",
    "RedisResults",
    "Rq",
    "SqlalchemyResults",
]
