"""The one interface of all contestants."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tests.reaper import Reaper

from ..marks import VARIABLE, Marks
from ..processes import Process


@dataclass(frozen=True)
class Place:
    """A fresh database, an empty broker and a folder, for one contestant."""

    broker_url: str
    redis_url: str
    """The broker's, or where the broker is not Redis, one for results."""
    database_url: str
    """SQLAlchemy's, with the driver's name."""
    folder: Path
    marks: Marks
    reaper: Reaper

    @property
    def dsn(self) -> str:
        """The database's URL for those who do not use SQLAlchemy."""
        return self.database_url.replace("postgresql+psycopg://", "postgresql://")


class Peer:
    """Something that runs jobs. Its body is `benchmarks.marks.body`, its workers use two cores."""

    name: ClassVar[str]
    settings: ClassVar[str]
    """With which settings, and who says that these are its best."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.workers: list[Process] = []

    def prepare(self) -> None:
        """Make tables, and whatever else there is to make once for all processes.

        Raises:
            ImportError: it is not installed.
        """
        self.open()

    def open(self) -> None:
        """Make what this process needs to submit."""

    def submit(self, number: int) -> object:
        """Submit one job."""
        raise NotImplementedError

    def submit_many(self, numbers: Sequence[int]) -> None:
        """Submit many jobs, in the best way that it has for it."""
        for number in numbers:
            self.submit(number)

    def purge(self) -> None:
        """Forget the jobs that no worker has taken."""
        raise NotImplementedError

    def start_workers(self, count: int = 1) -> None:
        """Start workers, each with two processes for bodies; return when they can take jobs."""
        raise NotImplementedError

    def settled(self, count: int) -> bool:
        """Say whether so many jobs stand as finished where they are kept; True if nothing is kept."""
        return True

    def stop_workers(self) -> None:
        """Kill all workers."""
        for worker in self.workers:
            worker.end()
        self.workers = []

    def close(self) -> None:
        """Let go of everything."""
        self.stop_workers()

    def start(self, words: Sequence[str], ready: str, **environment: str) -> Process:
        """Start a process of a worker, and wait until it says that it is ready."""
        log = self.place.folder / f"worker-{len(self.workers)}.log"
        log.unlink(missing_ok=True)
        variables = {VARIABLE: str(self.place.marks.path), **environment}
        process = Process(words, log, self.place.reaper, variables)
        self.workers.append(process)
        process.wait_for(ready)
        return process
