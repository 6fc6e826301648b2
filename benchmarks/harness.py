"""What a benchmark gets: servers, sandboxes on them, systems to compare, and amounts."""

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import redis
import sqlalchemy

from tests.reaper import Reaper
from tests.servers import execute, in_virtual_host

from .interleaved import measure_interleaved
from .marks import Marks
from .peers.peer import Peer, Sandbox
from .progress import Progress
from .servers import DurablePostgresql, Servers

T = TypeVar("T")
LOGICAL_DATABASES = 16
"""Number of them in a Redis, by default."""


@dataclass
class Harness:
    """One run of the benchmarks."""

    servers: Servers
    reaper: Reaper
    progress: Progress
    quick: bool = False
    rounds: int | None = None
    """None: the number that the benchmark asks for."""

    def __post_init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="jobhandle-benchmarks-"))
        self.reaper.remove_folder(self.folder)
        self._numbers = itertools.count(1)

    def amount(self, full: int, quick: int) -> int:
        """Return the amount for this run: `quick` with ``--quick``, else `full`."""
        return quick if self.quick else full

    def measure(
        self,
        measurements: dict[str, Callable[[], T]],
        rounds: int,
        *,
        quick_rounds: int = 2,
        warm_up: bool = True,
    ) -> dict[str, list[T]]:
        """Run measurements interleaved, for `rounds` unless the command line sets the number."""
        number = self.rounds or self.amount(rounds, quick_rounds)
        return measure_interleaved(measurements, number, self.progress, warm_up=warm_up)

    @contextmanager
    def sandbox(
        self,
        name: str = "sandbox",
        *,
        rabbitmq: bool = False,
        server: Callable[[], DurablePostgresql] | None = None,
    ) -> Iterator[Sandbox]:
        """Provide a fresh database, an empty broker and a folder; remove them at the end."""
        number = next(self._numbers)
        postgresql = server() if server else self.servers.postgresql
        database = f"benchmark_{os.getpid()}_{number}"
        execute(postgresql.url, f'CREATE DATABASE "{database}" TEMPLATE template0')
        url = sqlalchemy.make_url(postgresql.url).set(database=database)
        redis_url = f"{self.servers.redis.url.rpartition('/')[0]}/{number % LOGICAL_DATABASES}"
        broker_url = redis_url
        if rabbitmq:
            self.servers.rabbitmq.management.create_virtual_host(database)
            broker_url = in_virtual_host(self.servers.rabbitmq.url, database)
        folder = self.folder / f"{number}-{name}"
        folder.mkdir()
        try:
            yield Sandbox(
                broker_url=broker_url,
                redis_url=redis_url,
                database_url=url.render_as_string(hide_password=False),
                folder=folder,
                marks=Marks(folder / "marks"),
                reaper=self.reaper,
            )
        finally:
            with redis.Redis.from_url(redis_url) as client:
                client.flushdb()
            execute(postgresql.url, f'DROP DATABASE "{database}" WITH (FORCE)')
            if rabbitmq:
                self.servers.rabbitmq.management.delete_virtual_host(database)

    @contextmanager
    def peers(
        self, kinds: list[type[Peer]], missing: dict[str, str], *, rabbitmq: bool = False
    ) -> Iterator[dict[str, Peer]]:
        """Provide systems, each in a sandbox of its own; add those that are not installed to `missing`."""
        with ExitStack() as stack:
            ready: dict[str, Peer] = {}
            for kind in kinds:
                sandbox = stack.enter_context(self.sandbox(kind.__name__, rabbitmq=rabbitmq))
                self.progress.show(f"prepare {kind.name}")
                try:
                    peer = kind(sandbox)
                    peer.prepare()
                except ImportError as error:
                    missing[kind.name] = f"not installed: {error}"
                    continue
                stack.callback(peer.close)
                ready[kind.name] = peer
            yield ready
