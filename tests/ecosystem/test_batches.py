"""celery-batches 0.11: its tasks stay plain tasks, beside jobs in one worker."""

from collections.abc import Callable
from typing import Any

import pytest
from celery_batches import Batches

from jobhandle_celery import Job, ValidationError
from tests.embedded import embedded_worker
from tests.support import eventually

pytestmark = pytest.mark.ecosystem


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_batches_run_beside_jobs_and_are_refused_as_jobs(
    redis_url: str, sqlite_url: str, make_jobs_app: Callable[..., Any], pool: str
) -> None:
    app = make_jobs_app(sqlite_url, redis_url, jobhandle_durable=["clicks"], worker_prefetch_multiplier=4)
    batches: list[list[int]] = []

    def count(requests: Any) -> None:
        batches.append([request.args[0] for request in requests])

    batch: dict[str, Any] = {"base": Batches, "flush_every": 3, "flush_interval": 3600, "shared": False}
    plain = app.task(name="views", **batch)(count)
    durable = app.task(name="clicks", **batch)(count)
    calls: list[Callable[[], Any]] = [
        lambda: durable.delay(1),
        lambda: app.jobs.submit(plain.s(1)),
        lambda: app.jobs.submit(Job(task="views", args=[1])),
    ]
    for call in calls:
        with pytest.raises(ValidationError, match="of its own"):
            call()
    with embedded_worker(app, pool):
        handle = app.jobs.handle()
        handle.submit(Job(task="tests.add", args=[1, 2]))
        for number in range(3):
            plain.delay(number)
        assert handle.result(timeout=60) == 3
        eventually(lambda: batches == [[0, 1, 2]])
    assert [job.task for job in app.jobs.find()] == ["tests.add"]
