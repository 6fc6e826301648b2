"""Connections to the broker that a process opens and keeps if each request has a thread of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable

from ..harness import Harness
from ..peers import Bare, Ours, Peer
from ..peers.celery_app import environment
from ..result import Goal, Result, Series

METHOD = """One process with 1,000 concurrent threads or gevent greenlets. Each submits one job, or calls
`apply_async` once, and ends. The process counts the sockets that it opens to the broker, and those that are
open at the end. Celery's `broker_pool_limit` has its default, 10. kombu opens one socket for a connection
to RabbitMQ, and two for one to Redis."""

MAX_KEPT = 10
SOCKETS = {"Redis": 2, "RabbitMQ": 1}


def run(harness: Harness) -> Result:
    """Count the connections on both brokers, with threads and with greenlets."""
    result = Result("connections", "Connections of a thousand requests", METHOD)
    count = harness.amount(1_000, 50)
    for broker, sockets in SOCKETS.items():
        with harness.peers([Ours, Bare], result.missing, rabbitmq=broker == "RabbitMQ") as peers:
            measurements = {
                f"{name}, {concurrency}, {broker}": _concurrent_submits(peer, concurrency, count)
                for concurrency in ("threads", "greenlets")
                for name, peer in peers.items()
            }
            measured = harness.measure(measurements, 2, quick_rounds=1, warm_up=False)
        for name, rounds in measured.items():
            kept = [found["left"] / sockets for found in rounds]
            if name.startswith(Ours.name):
                condition = name.removeprefix(f"{Ours.name}, ")
                label = f"connections kept after {count:,} requests ({condition})"
                result.goals.append(Goal(label, kept, MAX_KEPT, at_least=False))
            result.series.append(Series(f"{name}: opened", [found["opened"] for found in rounds], "sockets"))
            result.series.append(Series(f"{name}: left open", [found["left"] for found in rounds], "sockets"))
            if failed := sum(found["failed"] for found in rounds):
                result.missing[name] = f"{failed:.0f} requests failed"
    return result


def _concurrent_submits(peer: Peer, concurrency: str, count: int) -> Callable[[], dict[str, float]]:
    kind = "ours" if isinstance(peer, Ours) else "bare"

    def measure() -> dict[str, float]:
        command = [sys.executable, "-m", "benchmarks.concurrent_submits", concurrency, str(count)]
        variables = {**os.environ, **environment(kind, peer.sandbox)}
        done = subprocess.run(command, env=variables, check=True, capture_output=True, text=True, timeout=600)
        found = json.loads(done.stdout.splitlines()[-1])
        peer.purge()
        return {"opened": found["opened"], "left": found["left"], "failed": len(found["failed"])}

    return measure
