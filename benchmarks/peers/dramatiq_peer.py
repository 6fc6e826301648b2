"""Dramatiq, with messages in Redis and without results."""

from typing import Any

import redis

from .peer import Peer


class Dramatiq(Peer):
    """Two processes with eight threads each, the default."""

    name = "Dramatiq"
    settings = "`--processes 2`, eight threads each, its default (<https://dramatiq.io/guide.html>)"

    def open(self) -> None:
        """Create the actor."""
        from .dramatiq_app import make_actor  # an optional dependency

        self._actor: Any = make_actor(self.sandbox.redis_url)

    def submit(self, number: int) -> object:
        """Send a message."""
        return self._actor.send(number)

    def purge(self) -> None:
        """Empty the Redis database."""
        with redis.Redis.from_url(self.sandbox.redis_url) as client:
            client.flushdb()

    def start_workers(self, count: int = 1) -> None:
        """Start `count` commands, each of which starts two processes."""
        command = ["dramatiq", "benchmarks.peers.dramatiq_app", "--processes=2"]
        self.start([command] * count, "Worker process is ready", BENCHMARK_BROKER=self.sandbox.redis_url)
