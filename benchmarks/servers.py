"""The servers of a run: a Redis, a PostgreSQL that keeps its promises to the disk, a RabbitMQ."""

import subprocess
import tempfile
from pathlib import Path

import redis

from tests.reaper import Reaper
from tests.servers import (
    PostgresqlServer,
    RabbitmqServer,
    RedisServer,
    execute,
    own_rabbitmq,
    own_redis,
)
from tests.servers.postgresql import postgresql_places
from tests.servers.server import start_first

VERSION = 16
"""Of PostgreSQL, if one of that version is there."""


class DurablePostgresql(PostgresqlServer):
    """As one that holds valuable data: on a disk, and every commit waits for that disk."""

    statements = False
    """True: it counts and times every statement, which costs some of the speed."""

    @staticmethod
    def place() -> str | None:
        """On a disk. Not on a tmpfs, where a sync costs nothing."""
        return None if _kind_of_disk(tempfile.gettempdir()) != "tmpfs" else "/var/tmp"

    @property
    def options(self) -> dict[str, object]:
        """A small server's: what PostgreSQL's documentation says of memory, all else by default."""
        options: dict[str, object] = {
            "max_connections": 300,
            "fsync": "on",
            "full_page_writes": "on",
            "synchronous_commit": "on",
            # https://www.postgresql.org/docs/16/runtime-config-resource.html: a quarter of the memory is
            # a reasonable start; workers and Redis are on this machine too.
            "shared_buffers": "1GB",
            # Checkpoints by time and not by the amount of a benchmark's writes.
            "max_wal_size": "8GB",
            "maintenance_work_mem": "512MB",
        }
        if self.statements:
            options["shared_preload_libraries"] = "pg_stat_statements"
            options["track_wal_io_timing"] = "on"
        return options


class CountingPostgresql(DurablePostgresql):
    """One with `pg_stat_statements`, which not every installation has."""

    statements = True


def _kind_of_disk(folder: str) -> str:
    asked = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True)
    return asked.stdout.strip()


def _version(programs: Path) -> int:
    """Return the major version of these programs; 0 if they do not say."""
    asked = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=False)
    digits = "".join(letter if letter.isdigit() else " " for letter in asked.stdout).split()
    return int(digits[0]) if digits else 0


def _counts_statements(programs: Path) -> bool:
    asked = subprocess.run(
        [programs / "pg_config", "--pkglibdir"], capture_output=True, text=True, check=False
    )
    return (Path(asked.stdout.strip()) / "pg_stat_statements.so").exists()


class Servers:
    """Those that the benchmarks of a run have asked for so far; each is started when first needed."""

    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper
        self._redis: RedisServer | None = None
        self._rabbitmq: RabbitmqServer | None = None
        self._postgresql: DurablePostgresql | None = None
        self._counting: CountingPostgresql | None = None

    @property
    def redis(self) -> RedisServer:
        """A Redis without persistence, as a broker mostly is."""
        if self._redis is None:
            self._redis = own_redis(self._reaper)
        return self._redis

    @property
    def postgresql(self) -> DurablePostgresql:
        """A PostgreSQL, of the version that is to be measured if there is one."""
        if self._postgresql is None:
            places = sorted(postgresql_places(), key=lambda place: abs(_version(place) - VERSION))
            self._postgresql = start_first(DurablePostgresql, self._reaper, places)
        return self._postgresql

    @property
    def counting(self) -> CountingPostgresql:
        """A PostgreSQL with `pg_stat_statements`, of another version perhaps.

        Raises:
            ServerMissing: no installation has it.
        """
        if self._counting is None:
            places = list(filter(_counts_statements, postgresql_places()))
            self._counting = start_first(CountingPostgresql, self._reaper, places)
        return self._counting

    @property
    def rabbitmq(self) -> RabbitmqServer:
        """A RabbitMQ.

        Raises:
            ServerMissing: it is not installed.
        """
        if self._rabbitmq is None:
            self._rabbitmq = own_rabbitmq(self._reaper)
        return self._rabbitmq

    def versions(self) -> dict[str, str]:
        """Say of each server that runs which it is, and of PostgreSQL how it treats a commit."""
        said: dict[str, str] = {}
        for name, server in (
            ("PostgreSQL", self._postgresql),
            ("PostgreSQL with `pg_stat_statements`", self._counting),
        ):
            if server is not None:
                settings = ("server_version", "fsync", "synchronous_commit", "shared_buffers")
                values = [execute(server.url, f"SHOW {one}")[0][0] for one in settings]
                said[name] = f"{values[0].split()[0]}, " + ", ".join(
                    f"{name} {value}" for name, value in zip(settings[1:], values[1:], strict=True)
                )
        if self._redis is not None:
            with redis.Redis.from_url(self._redis.url) as client:
                said["Redis"] = str(client.info("server")["redis_version"])
        if self._rabbitmq is not None:
            said["RabbitMQ"] = str(self._rabbitmq.management.ask("GET", "overview")["rabbitmq_version"])
        return said

    def close(self) -> None:
        """End them all and remove their data."""
        for server in (self._redis, self._rabbitmq, self._postgresql, self._counting):
            if server is not None:
                server.discard()
        self._redis = self._rabbitmq = self._postgresql = self._counting = None
