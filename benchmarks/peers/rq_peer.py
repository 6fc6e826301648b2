"""RQ, with jobs in Redis."""

from collections.abc import Sequence
from typing import Any

import redis

from .. import marks
from .peer import Peer


class Rq(Peer):
    """Two workers that run bodies in their own process."""

    name = "RQ"
    settings = (
        "two `SimpleWorker`s, six times as fast as the default by RQ's "
        "<https://github.com/rq/rq/blob/master/docs/benchmark.md>; many by `enqueue_many`"
    )

    def open(self) -> None:
        """Create the queue."""
        from rq import Queue  # an optional dependency

        self._client: Any = redis.Redis.from_url(self.sandbox.redis_url)
        self._queue = Queue("benchmarks", connection=self._client)

    def submit(self, number: int) -> object:
        """Enqueue a job."""
        return self._queue.enqueue(marks.body, number)

    def submit_many(self, numbers: Sequence[int]) -> None:
        """Enqueue jobs in pipelines of 1,000."""
        from rq import Queue

        for start in range(0, len(numbers), 1000):
            batch = numbers[start : start + 1000]
            self._queue.enqueue_many([Queue.prepare_data(marks.body, (number,)) for number in batch])

    def purge(self) -> None:
        """Empty the Redis database."""
        self._client.flushdb()

    def start_workers(self, count: int = 1) -> None:
        """Start two processes per worker."""
        # Without --quiet, three log lines per job would be measured.
        options = ["--url", self.sandbox.redis_url, "--worker-class", "rq.SimpleWorker", "--quiet"]
        self.start([["rq.cli", "worker", *options, "benchmarks"]] * 2 * count, "")

    def settled(self, count: int) -> bool:
        """Count the finished jobs."""
        return int(self._queue.finished_job_registry.get_job_count(cleanup=False)) >= count

    def close(self) -> None:
        """Close the connection."""
        super().close()
        self._client.close()
