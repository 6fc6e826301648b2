"""A double of the publisher."""

from collections.abc import Iterable

from jobhandle_celery.broker.publisher import Published
from jobhandle_celery.store import PendingMessage


class Recorder:
    """A publisher that records jobs; its queues hold as many messages as the test says."""

    def __init__(self, depth: int | dict[str, int] | None = 0) -> None:
        self.reachable = True
        self.published: list[int] = []
        self.unsendable: set[int] = set()
        self._depth = depth

    def depth(self, queue: str) -> int | None:
        return self._depth[queue] if isinstance(self._depth, dict) else self._depth

    def publish(self, messages: Iterable[PendingMessage]) -> Published:
        published = Published()
        for job in messages:
            self.published.append(job.job_id)
            if job.job_id in self.unsendable:
                published.reject(job, "unsendable")
            else:
                published.sent.append(job)
        return published
