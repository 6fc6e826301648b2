"""Procrastinate, with jobs in PostgreSQL."""

from collections.abc import Sequence
from typing import Any

from tests.servers import execute

from .peer import Peer


class Procrastinate(Peer):
    """Two worker processes, each with an event loop."""

    name = "Procrastinate"
    settings = (
        "two processes `--concurrency 10` with an asynchronous body and LISTEN/NOTIFY (its default); "
        "submits by `SyncPsycopgConnector`, many by `batch_defer` "
        "(<https://procrastinate.readthedocs.io/en/stable/howto/>: concurrency, connector, defer)"
    )

    def prepare(self) -> None:
        """Create the tables."""
        super().prepare()
        self._app.schema_manager.apply_schema()

    def open(self) -> None:
        """Open the connection pool."""
        from procrastinate import SyncPsycopgConnector  # an optional dependency

        from .procrastinate_app import make_app

        self._app = make_app(SyncPsycopgConnector(conninfo=self.sandbox.dsn))
        self._app.open()
        self._task: Any = self._app.tasks["benchmarks.body"]

    def submit(self, number: int) -> object:
        """Defer a job."""
        return self._task.defer(number=number)

    def submit_many(self, numbers: Sequence[int]) -> None:
        """Defer jobs in batches of 1,000."""
        for start in range(0, len(numbers), 1000):
            self._task.batch_defer(*({"number": number} for number in numbers[start : start + 1000]))

    def purge(self) -> None:
        """Delete all jobs."""
        execute(self.sandbox.database_url, "TRUNCATE procrastinate_jobs CASCADE")

    def start_workers(self, count: int = 1) -> None:
        """Start two processes per worker."""
        # At the level INFO, two log lines per job would be measured.
        app = ["procrastinate", "--app=benchmarks.peers.procrastinate_app.app", "--log-level=warning"]
        command = [*app, "worker", "--concurrency=10"]
        self.start([command] * 2 * count, "", BENCHMARK_DATABASE=self.sandbox.dsn)

    def settled(self, count: int) -> bool:
        """Count the rows."""
        statement = "SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'"
        return int(execute(self.sandbox.database_url, statement)[0][0]) >= count

    def close(self) -> None:
        """Close the connections."""
        super().close()
        self._app.close()
