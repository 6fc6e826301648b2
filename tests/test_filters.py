"""Lists, counts and mass cancels of `Jobs`, their filters and users, and `Jobs` as a context manager."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from celery import Celery

from jobhandle_celery import (
    ApiUsageError,
    Job,
    Jobs,
    JobStatus,
    UnknownJobError,
    ValidationError,
)
from tests.apps import make_app
from tests.job_factory import ADD, HELD, JobFactory, age

HOUR = timedelta(hours=1)


@pytest.fixture
def jobs(factory: JobFactory) -> Any:
    return factory.jobs


# Lists, counts, mass cancel.


def test_find_returns_pages_from_the_newest(jobs: Any) -> None:
    ids = jobs.submit_many([Job(task="tests.other") for _ in range(5)])[::-1]

    def found(**query: Any) -> list[int]:
        return [job.id for job in jobs.find(**query)]

    assert found() == ids
    assert found(limit=2) == ids[:2]
    assert found(limit=2, before=ids[1]) == ids[2:4]
    assert found(before=ids[-1]) == []
    assert jobs.find(limit=1)[0] == jobs.attach(ids[0]).get_job()


def test_filters_mean_the_same_to_find_count_and_cancel(factory: JobFactory) -> None:
    jobs = factory.jobs
    old, *ids = jobs.submit_many([Job(task=f"task.{number % 2}") for number in range(4)], username="ann")
    ids += jobs.submit_many([Job(task="task.0", status=JobStatus.WAITING)], username="bob", groupname="lab")
    age(factory, old, "submitted", 2 * HOUR)
    now = jobs.attach(ids[0]).get_job().submitted
    for filters, expected in (
        ({}, [old, *ids]),
        ({"status": "Waiting"}, ids[3:]),
        ({"status": JobStatus.WAITING}, ids[3:]),
        ({"status": ["Waiting", "Queued"]}, [old, *ids]),
        ({"status": []}, []),
        ({"task": "task.1"}, [ids[0], ids[2]]),
        ({"task": "task.0", "username": "ann"}, [old, ids[1]]),
        ({"task": "unregistered"}, []),
        ({"username": "bob"}, ids[3:]),
        ({"groupname": "lab"}, ids[3:]),
        ({"groupname": "lab", "username": "ann"}, []),
        ({"ids": [old, ids[1], 10**9]}, [old, ids[1]]),
        ({"ids": []}, []),
        ({"since": HOUR}, ids),
        ({"since": 3600.0}, ids),
        ({"since": now - HOUR}, ids),
        ({"since": 3 * HOUR, "until": HOUR}, [old]),
        ({"until": 3600, "username": "ann"}, [old]),
        ({"until": now - HOUR}, [old]),
        ({"since": now + HOUR}, []),
        ({"until": 0, "ids": [ids[3]]}, ids[3:]),
        ({"since": now, "until": now}, []),
    ):
        query: dict[str, Any] = filters
        assert [job.id for job in jobs.find(**query)] == expected[::-1], query
        assert [job.id for job in jobs.find(**query, limit=1)] == expected[-1:], query
        counts = jobs.count_by_status(**query)
        assert (len(counts), sum(counts.values())) == (9, len(expected)), query
    assert jobs.count_by_status(username="ann")[JobStatus.QUEUED] == 4
    assert jobs.cancel_many(until=now - HOUR) == jobs.cancel_many(groupname="lab") == 1
    assert [job.id for job in jobs.find(status="Cancelled")] == [ids[3], old]
    assert jobs.cancel_many(since=HOUR, task="task.1") == 2


@pytest.mark.parametrize(("aged", "filter"), [((1,), "since"), ((0, 2), "until")])
def test_period_finds_jobs_whose_ids_do_not_rise_with_time(
    factory: JobFactory, aged: tuple[int, ...], filter: str
) -> None:
    """A clock that was set, or a long transaction, exchanges the order of neighbours."""
    minute = timedelta(minutes=1)
    ids = factory.jobs.submit_many([ADD] * 3)
    for number in aged:
        age(factory, ids[number], "submitted", 2 * minute)
    query: dict[str, Any] = {filter: minute}
    assert [job.id for job in factory.jobs.find(**query)] == [ids[2], ids[0]]
    start, end = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    assert [job.id for job in factory.jobs.find(since=start, until=end)] == ids[::-1]


def test_positional_filter_is_a_type_error(jobs: Any) -> None:
    for operation in (jobs.find, jobs.count_by_status, jobs.cancel_many):
        with pytest.raises(TypeError, match="positional"):
            operation("Waiting")
        naive = datetime(2030, 1, 1)  # noqa: DTZ001
        bad: Any
        for bad in ("1h", True, -1, -HOUR, float("nan"), naive, []):
            for field in ("since", "until"):
                with pytest.raises(ValidationError, match=f"^{field}: "):
                    operation(**{field: bad})


def test_counts_have_all_nine_statuses(factory: JobFactory) -> None:
    assert factory.jobs.count_by_status() == dict.fromkeys(JobStatus, 0)
    for number, status in enumerate(JobStatus):
        for _ in range(number % 3):
            factory.job_in(status)
    assert factory.jobs.count_by_status() == {status: n % 3 for n, status in enumerate(JobStatus)}


def test_cancel_many_cancels_what_fits_and_counts_it(factory: JobFactory) -> None:
    jobs = factory.jobs
    handles = {status: factory.job_in(status) for status in JobStatus}
    with pytest.raises(ApiUsageError, match="needs"):
        jobs.cancel_many()
    assert jobs.cancel_many(ids=[]) == 0
    assert jobs.cancel_many(username="nobody") == jobs.cancel_many(task="unregistered") == 0
    assert jobs.cancel_many(status="Queued", ids=[handles[JobStatus.QUEUED].job_id]) == 1
    assert jobs.cancel_many(task="tests.add") == 5
    assert jobs.cancel_many(task="tests.add") == 0
    for status, handle in handles.items():
        stays = status.final or status is JobStatus.RUNNING
        assert handle.job_status() is (status if stays else JobStatus.CANCELLED)
    assert handles[JobStatus.RUNNING].cancel_requested()


# Users.


def test_username_none_is_refused_where_it_would_see_all(jobs: Any) -> None:
    """A web service passes the name of its client, who may not have logged in."""
    job_id = jobs.submit(ADD)
    cancel = partial(jobs.cancel_many, ids=[])
    lists = (jobs.find, jobs.count_by_status, cancel)
    for operation in (jobs.handle, partial(jobs.attach, job_id), partial(jobs.events, job_id), *lists):
        operation()
        with pytest.raises(ValidationError, match=r"^username: None .*left out"):
            operation(username=None)


def test_attach_and_events_with_username_see_its_jobs_alone(jobs: Any) -> None:
    job_id = jobs.submit(ADD, username="ann", groupname="lab")
    with jobs.attach(job_id, username="ann") as handle:
        job = handle.get_job()
        assert (job.username, job.groupname) == ("ann", "lab")
        assert handle.events() == jobs.events(job_id) == jobs.events(job_id, username="ann")
        assert [event.status for event in handle.events()] == [JobStatus.SUBMITTED]
    with pytest.raises(UnknownJobError, match=f"no job {job_id}"):
        jobs.attach(job_id, username="bob")
    assert jobs.events(job_id, username="bob") == []


def test_jobs_as_context_manager_closes_its_connections(
    database_url: str, make_jobs_app: Callable[..., Any]
) -> None:
    app = make_jobs_app(database_url)
    with app.jobs as jobs:
        assert jobs is app.jobs
        job_id = jobs.submit(Job(task="tests.add", args=[1, 2], status=JobStatus.WAITING))
        pool = jobs._runtime.store.database.engine.pool
        assert pool.checkedin() == 1
    assert pool.checkedin() == 0
    assert jobs.attach(job_id).job_status() is JobStatus.WAITING


def test_close_of_unused_jobs_makes_no_part(sqlite_url: str) -> None:
    """Not even a missing setting fails then, and the error of the body is not hidden."""
    unset: Any = Celery("unset")
    with pytest.raises(KeyError, match="of the body"), Jobs(unset):
        raise KeyError("of the body")
    app: Any = make_app("memory://", sqlite_url)
    app.jobs.close()
    assert not app.jobs._runtime.__dict__.keys() & {"settings", "store", "publisher", "submitter"}


def test_close_closes_all_parts_after_an_error(
    sqlite_url: str, make_jobs_app: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_jobs_app(sqlite_url)
    runtime = app.jobs._runtime
    app.jobs.submit(HELD)
    closed: list[str] = []

    def fail(part: str) -> None:
        closed.append(part)
        raise RuntimeError(part)

    with monkeypatch.context() as patch:
        patch.setattr(runtime.submitter, "drain", partial(fail, "drain"))
        patch.setattr(runtime.store.database, "close", partial(fail, "database"))
        patch.setattr(runtime.publisher, "close", partial(fail, "publisher"))
        with pytest.raises(RuntimeError):
            app.jobs.close()
    assert closed == ["drain", "database", "publisher"]
