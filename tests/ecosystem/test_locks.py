"""celery-singleton 0.3 and celery-once 3.0: their locks, which are keys in Redis, around durable tasks."""

from collections.abc import Callable
from typing import Any

import celery_once
import celery_singleton
import pytest
import redis
from celery.states import REJECTED
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from jobhandle_celery import JobResult, JobStatus, ValidationError
from tests.documentation import blocks
from tests.embedded import embedded_worker
from tests.support import eventually

pytestmark = pytest.mark.ecosystem


def double(x: int) -> int:
    return 2 * x


def fail(x: int) -> None:
    raise LookupError(x)


@pytest.fixture
def app(redis_url: str, sqlite_url: str, make_jobs_app: Callable[..., Any]) -> Any:
    app = make_jobs_app(
        sqlite_url,
        redis_url,
        result_backend="jobhandle",
        singleton_backend_url=redis_url,
        ONCE={"backend": "celery_once.backends.Redis", "settings": {"url": redis_url}},
    )
    for tool, base in (("singleton", celery_singleton.Singleton), ("once", celery_once.QueueOnce)):
        for body in (double, fail):
            name = f"{tool}.{body.__name__}"
            app.task(name=name, base=base, durable=True, shared=False)(body)
    return app


@pytest.fixture
def locks(redis_url: str) -> Callable[[], int]:
    """Return how many locks there are."""

    def count() -> int:
        with redis.Redis.from_url(redis_url) as client:
            return len([*client.scan_iter("SINGLETONLOCK_*"), *client.scan_iter("qo_*")])

    return count


def test_second_call_of_a_singleton_is_the_first_ones_result(app: Any, locks: Callable[[], int]) -> None:
    task = app.tasks["singleton.double"]
    first, second = task.delay(4), task.delay(4)
    assert isinstance(first, JobResult)
    assert second.id == first.id
    with embedded_worker(app):
        assert [first.get(timeout=60), second.get(timeout=60)] == [8, 8]
        eventually(lambda: locks() == 0)
        assert task.delay(4).get(timeout=60) == 8
        with pytest.raises(LookupError):
            app.tasks["singleton.fail"].delay(4).get(timeout=60)
        eventually(lambda: locks() == 0)
    assert len(app.jobs.find()) == 3


def test_second_call_of_a_queued_once_task_is_refused(app: Any, locks: Callable[[], int]) -> None:
    task = app.tasks["once.double"]
    first = task.delay(4)
    with pytest.raises(celery_once.AlreadyQueued):
        task.delay(4)
    task.once = {"graceful": True}
    assert task.delay(4).state == REJECTED
    with embedded_worker(app):
        assert first.get(timeout=60) == 8
        eventually(lambda: locks() == 0)
        assert task.delay(4).get(timeout=60) == 8
        with pytest.raises(LookupError):
            app.tasks["once.fail"].delay(4).get(timeout=60)
        eventually(lambda: locks() == 0)
    assert len(app.jobs.find()) == 3


@pytest.mark.parametrize("tool", ["singleton", "once"])
def test_submit_of_a_locked_task_is_refused(app: Any, tool: str) -> None:
    """Also of one whose `delay` would be silent: a job that is not there is never a success."""
    signature = app.tasks[f"{tool}.double"].s(4)
    app.jobs.submit(signature)
    with pytest.raises((ValidationError, celery_once.AlreadyQueued)):
        app.jobs.submit(signature)
    assert len(app.jobs.find()) == 1


@pytest.mark.parametrize("tool", ["singleton", "once"])
def test_lock_outlives_a_job_that_does_not_run(
    app: Any, tool: str, sqlite_url: str, locks: Callable[[], int]
) -> None:
    """As that of a revoked task; the documentation says so, and what to use instead."""
    task = app.tasks[f"{tool}.double"]
    assert task.delay(4).revoke() is JobStatus.CANCELLED
    engine = create_engine(sqlite_url)
    with Session(engine) as session:
        with app.jobs.submitting(session=session):
            task.delay(5)
        session.rollback()
    engine.dispose()
    assert locks() == 2


def test_unique_key_of_the_guide_is_free_when_its_job_does_not_run(app: Any) -> None:
    guide = next(
        block
        for block in blocks("docs/how-to/coming-from-celery.md", "python")
        if "class OneAtATime" in block.code
    )
    names: dict[str, Any] = {"app": app}
    exec(guide.code, names)
    recount = names["recount"]
    first = recount.delay("a")
    assert recount.delay("a").job_id == first.job_id
    assert recount.delay("b").job_id != first.job_id
    first.revoke()
    assert recount.delay("a").job_id != first.job_id
