"""RQ: jobs in Redis."""

from collections.abc import Sequence
from typing import Any

import redis

from .. import marks
from .peer import Peer


class Rq(Peer):
    """Two workers that run bodies in their own process."""

    name = "RQ"
    settings = (
        "two `SimpleWorker`s, six times as fast as its default by its own "
        "<https://github.com/rq/rq/blob/master/docs/benchmark.md>; many by `enqueue_many`"
    )

    def open(self) -> None:
        """Make the queue."""
        from rq import Queue  # an optional dependency

        self._client: Any = redis.Redis.from_url(self.place.redis_url)
        self._queue = Queue("benchmarks", connection=self._client)

    def submit(self, number: int) -> object:
        """Enqueue a job."""
        return self._queue.enqueue(marks.body, number)

    def submit_many(self, numbers: Sequence[int]) -> None:
        """Enqueue them in pipelines of a thousand."""
        from rq import Queue

        for start in range(0, len(numbers), 1000):
            those = numbers[start : start + 1000]
            self._queue.enqueue_many([Queue.prepare_data(marks.body, (number,)) for number in those])

    def purge(self) -> None:
        """Forget everything."""
        self._client.flushdb()

    def start_workers(self, count: int = 1) -> None:
        """Start two processes for each."""
        for _ in range(2 * count):
            # Warnings alone: three lines for each job would be measured too.
            options = ["--url", self.place.redis_url, "--worker-class", "rq.SimpleWorker", "--quiet"]
            self.start(["rq.cli", "worker", *options, "benchmarks"], "")

    def settled(self, count: int) -> bool:
        """Count the finished jobs."""
        return int(self._queue.finished_job_registry.get_job_count(cleanup=False)) >= count

    def close(self) -> None:
        """Close the connection."""
        super().close()
        self._client.close()
