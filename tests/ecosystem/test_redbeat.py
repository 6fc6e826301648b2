"""celery-redbeat 2.4: each time, an entry of its `RedBeatScheduler` for a durable task is one job."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from celery.beat import Service
from celery.schedules import schedule
from redbeat import RedBeatScheduler, RedBeatSchedulerEntry
from redbeat.schedulers import get_redis

from jobhandle_celery import JobStatus
from tests.embedded import embedded_worker
from tests.support import eventually

pytestmark = pytest.mark.ecosystem

OFTEN = timedelta(seconds=0.2)


def add(x: int, y: int) -> int:
    return x + y


@pytest.fixture
def app(redis_url: str, sqlite_url: str, make_jobs_app: Callable[..., Any]) -> Any:
    app = make_jobs_app(sqlite_url, redis_url, redbeat_redis_url=redis_url)
    app.task(name="add", durable=True, shared=False)(add)
    get_redis(app)  # one for all threads: otherwise the first two to ask make one each, and close the other's
    return app


@contextmanager
def beating(app: Any) -> Iterator[None]:
    """Run beat with its lock, in a thread."""
    beat: Any = Service(app, max_interval=1, scheduler_cls=RedBeatScheduler)
    thread = threading.Thread(target=beat.start)
    thread.start()
    try:
        yield
    finally:
        beat.stop()
        thread.join()


def times_run(app: Any, name: str) -> int:
    """Return how often an entry was due; 0 before beat has stored it."""
    try:
        entry = RedBeatSchedulerEntry.from_key(RedBeatSchedulerEntry.generate_key(app, name), app=app)
    except KeyError:
        return 0
    times: int = entry.total_run_count
    return times


def test_entry_made_at_run_time_is_one_job_each_time(app: Any) -> None:
    RedBeatSchedulerEntry("often", "add", schedule(OFTEN), args=[1, 2], app=app).save()
    with embedded_worker(app), beating(app):
        eventually(lambda: len(app.jobs.find(status="Finished")) >= 3)
    jobs = app.jobs.find()
    assert len(jobs) == times_run(app, "often")
    assert {(job.task, job.result) for job in jobs if job.status is JobStatus.FINISHED} == {("add", 3)}


def test_options_of_entry_in_configuration_are_those_of_the_job(app: Any) -> None:
    options = {"unique_key": "nightly", "priority": 3, "headers": {"tenant": "acme"}, "expires": 3600}
    app.conf.beat_schedule = {"often": {"task": "add", "schedule": OFTEN, "args": (1, 2), "options": options}}
    with beating(app):
        eventually(lambda: times_run(app, "often") >= 3)
    (job,) = app.jobs.find()  # the others are this one, by its key
    assert (job.unique_key, job.priority) == ("nightly", 3)
    assert job.headers == {"tenant": "acme", "celery_beat_task": True}
    assert timedelta(minutes=50) < job.expires - job.submitted <= timedelta(hours=1)
