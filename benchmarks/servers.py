"""The servers of a run: Redis, a PostgreSQL that syncs its commits to a disk, RabbitMQ."""

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

from .processes import processor_time

VERSION = 16
"""The preferred major version of PostgreSQL."""


class DurablePostgresql(PostgresqlServer):
    """As in production: the data is on a disk, and each commit waits for a sync."""

    statements = False
    """True: the server counts and times each statement, which slows it down."""

    @staticmethod
    def place() -> str | None:
        """Return a folder on a disk: on a tmpfs a sync costs nothing. None: the default."""
        return None if _filesystem(tempfile.gettempdir()) != "tmpfs" else "/var/tmp"

    @property
    def options(self) -> dict[str, object]:
        """Those of a small server: memory as PostgreSQL's documentation recommends, else the defaults."""
        options: dict[str, object] = {
            "max_connections": 300,
            "fsync": "on",
            "full_page_writes": "on",
            "synchronous_commit": "on",
            # https://www.postgresql.org/docs/16/runtime-config-resource.html: a quarter of the memory is
            # a reasonable start; workers and Redis are on this machine too.
            "shared_buffers": "1GB",
            # Checkpoints are made by time, not by the amount that a benchmark writes.
            "max_wal_size": "8GB",
            "maintenance_work_mem": "512MB",
        }
        if self.statements:
            options["shared_preload_libraries"] = "pg_stat_statements"
            options["track_wal_io_timing"] = "on"
        return options


class CountingPostgresql(DurablePostgresql):
    """Has `pg_stat_statements`, which is not part of every installation."""

    statements = True


def _filesystem(folder: str) -> str:
    found = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def _version(programs: Path) -> int:
    """Return the major version of these programs; 0 if it is unknown."""
    found = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=False)
    digits = "".join(letter if letter.isdigit() else " " for letter in found.stdout).split()
    return int(digits[0]) if digits else 0


def _counts_statements(programs: Path) -> bool:
    found = subprocess.run(
        [programs / "pg_config", "--pkglibdir"], capture_output=True, text=True, check=False
    )
    return (Path(found.stdout.strip()) / "pg_stat_statements.so").exists()


class Servers:
    """Starts each server at its first use."""

    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper
        self._redis: RedisServer | None = None
        self._rabbitmq: RabbitmqServer | None = None
        self._postgresql: DurablePostgresql | None = None
        self._counting: CountingPostgresql | None = None

    @property
    def redis(self) -> RedisServer:
        """Redis without persistence, as brokers usually run."""
        if self._redis is None:
            self._redis = own_redis(self._reaper)
        return self._redis

    @property
    def postgresql(self) -> DurablePostgresql:
        """PostgreSQL, of the installed version that is nearest to `VERSION`."""
        if self._postgresql is None:
            places = sorted(postgresql_places(), key=lambda place: abs(_version(place) - VERSION))
            self._postgresql = start_first(DurablePostgresql, self._reaper, places)
        return self._postgresql

    def postgresql_processor_time(self) -> float:
        """Return the seconds of processor time of PostgreSQL's present processes."""
        return processor_time(self.postgresql.processes())

    @property
    def counting(self) -> CountingPostgresql:
        """PostgreSQL with `pg_stat_statements`, of any version.

        Raises:
            ServerMissing: No installation has it.
        """
        if self._counting is None:
            places = list(filter(_counts_statements, postgresql_places()))
            self._counting = start_first(CountingPostgresql, self._reaper, places)
        return self._counting

    @property
    def rabbitmq(self) -> RabbitmqServer:
        """RabbitMQ.

        Raises:
            ServerMissing: It is not installed.
        """
        if self._rabbitmq is None:
            self._rabbitmq = own_rabbitmq(self._reaper)
        return self._rabbitmq

    def versions(self) -> dict[str, str]:
        """Return the versions of the servers that run, and PostgreSQL's settings for commits."""
        versions: dict[str, str] = {}
        for name, server in (
            ("PostgreSQL", self._postgresql),
            ("PostgreSQL with `pg_stat_statements`", self._counting),
        ):
            if server is not None:
                settings = ("server_version", "fsync", "synchronous_commit", "shared_buffers")
                values = [execute(server.url, f"SHOW {setting}")[0][0] for setting in settings]
                versions[name] = f"{values[0].split()[0]}, " + ", ".join(
                    f"{setting} {value}" for setting, value in zip(settings[1:], values[1:], strict=True)
                )
        if self._redis is not None:
            with redis.Redis.from_url(self._redis.url) as client:
                versions["Redis"] = str(client.info("server")["redis_version"])
        if self._rabbitmq is not None:
            versions["RabbitMQ"] = str(self._rabbitmq.management.ask("GET", "overview")["rabbitmq_version"])
        return versions

    def close(self) -> None:
        """Stop all servers and remove their data."""
        for server in (self._redis, self._rabbitmq, self._postgresql, self._counting):
            if server is not None:
                server.discard()
        self._redis = self._rabbitmq = self._postgresql = self._counting = None
