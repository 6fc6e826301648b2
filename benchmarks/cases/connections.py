"""How many connections to the broker a process opens and keeps, when each request has a thread of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable

from ..peers import Bare, Ours, Peer
from ..peers.celery_app import environment
from ..result import Goal, Result, Series
from ..stage import Stage

METHOD = """One process, 1,000 threads or gevent greenlets at once, each submits one job, or calls
`apply_async` once, and ends. The process counts the sockets that it opens to the broker, and those that are
open at the end. Celery's `broker_pool_limit` is its default, 10; kombu has one socket for a connection to
RabbitMQ, and for one to Redis two."""

KEPT = 10
SOCKETS = {"Redis": 2, "RabbitMQ": 1}


def run(stage: Stage) -> Result:
    """Measure."""
    result = Result("connections", "Connections of a thousand requests", METHOD)
    count = stage.amount(1_000, 50)
    for broker, sockets in SOCKETS.items():
        with stage.peers([Ours, Bare], result.missing, rabbitmq=broker == "RabbitMQ") as peers:
            contestants = {
                f"{name}, {way}, {broker}": _crowd(peer, way, count)
                for way in ("threads", "greenlets")
                for name, peer in peers.items()
            }
            measured = stage.contest(contestants, 3, quick_rounds=1, warm_up=False)
        for name, rounds in measured.items():
            left = [each["left"] / sockets for each in rounds]
            if name.startswith(Ours.name):
                way = name.removeprefix(f"{Ours.name}, ")
                label = f"connections kept after {count:,} requests ({way})"
                result.goals.append(Goal(label, left, KEPT, at_least=False))
            result.series.append(Series(f"{name}: opened", [each["opened"] for each in rounds], "sockets"))
            result.series.append(Series(f"{name}: left open", [each["left"] for each in rounds], "sockets"))
            if failed := sum(each["failed"] for each in rounds):
                result.missing[name] = f"{failed:.0f} requests failed"
    return result


def _crowd(peer: Peer, way: str, count: int) -> Callable[[], dict[str, float]]:
    kind = "ours" if isinstance(peer, Ours) else "bare"

    def crowd() -> dict[str, float]:
        command = [sys.executable, "-m", "benchmarks.crowd", way, str(count)]
        variables = {**os.environ, **environment(kind, peer.place)}
        done = subprocess.run(command, env=variables, check=True, capture_output=True, text=True, timeout=600)
        found = json.loads(done.stdout.splitlines()[-1])
        peer.purge()
        return {"opened": found["opened"], "left": found["left"], "failed": len(found["failed"])}

    return crowd
