"""The interface of all compared systems."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tests.reaper import Reaper

from ..marks import VARIABLE, Marks
from ..processes import Process, processor_time


@dataclass(frozen=True)
class Sandbox:
    """A fresh database, an empty broker and a folder for one system."""

    broker_url: str
    redis_url: str
    """The broker's URL; with RabbitMQ, that of a Redis for results."""
    database_url: str
    """A URL of SQLAlchemy, with the driver's name."""
    folder: Path
    marks: Marks
    reaper: Reaper

    @property
    def dsn(self) -> str:
        """The database's URL for libpq."""
        return self.database_url.replace("postgresql+psycopg://", "postgresql://")


class Peer:
    """A system that runs jobs. The body is `benchmarks.marks.body`; a worker has two processes."""

    name: ClassVar[str]
    settings: ClassVar[str]
    """Its settings, and the documentation that recommends them."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.workers: list[Process] = []

    def prepare(self) -> None:
        """Create tables and whatever else all processes share.

        Raises:
            ImportError: The system is not installed.
        """
        self.open()

    def open(self) -> None:
        """Create what this process needs to submit."""

    def submit(self, number: int) -> object:
        """Submit one job."""
        raise NotImplementedError

    def submit_many(self, numbers: Sequence[int]) -> None:
        """Submit many jobs, by the system's fastest call."""
        for number in numbers:
            self.submit(number)

    def purge(self) -> None:
        """Delete the jobs that no worker has taken."""
        raise NotImplementedError

    def start_workers(self, count: int = 1) -> None:
        """Start workers, each with two processes for bodies; wait until they are ready."""
        raise NotImplementedError

    def settled(self, count: int) -> bool:
        """Return whether `count` jobs are stored as finished; True if the system stores nothing."""
        return True

    def processor_time(self) -> float:
        """Return the seconds of processor time of all processes of the workers."""
        return processor_time(process for worker in self.workers for process in worker.family())

    def stop_workers(self) -> None:
        """Kill all workers."""
        for worker in self.workers:
            worker.end()
        self.workers = []

    def close(self) -> None:
        """Kill the workers and close all connections."""
        self.stop_workers()

    def start(self, commands: Iterable[Sequence[str]], ready: str, **environment: str) -> None:
        """Start worker processes together, and wait until the output of each contains `ready`."""
        variables = {VARIABLE: str(self.sandbox.marks.path), **environment}
        for words in commands:
            log = self.sandbox.folder / f"worker-{len(self.workers)}.log"
            log.unlink(missing_ok=True)
            self.workers.append(Process(words, log, self.sandbox.reaper, variables))
        for process in self.workers:
            process.wait_for(ready, timeout=120)
