"""Isolation of apps, namespaces and users in one process; an app has one `Jobs`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, shared_task

from jobhandle_celery import ApiUsageError, Job, Jobs, JobStatus, UnknownJobError, current_job
from jobhandle_celery.broker.headers import job_headers
from tests.apps import lines_of
from tests.handle_operations import OPERATIONS
from tests.job_factory import ADD, JobFactory


@shared_task(name="tests.shared")
def shared() -> Any:
    """Set the job's message, and return its id."""
    job = current_job()
    if job is None:
        return None
    job.set_message("shared")
    return job.job_id


@pytest.fixture
def two(sqlite_url: str, postgresql_url: str, make_jobs_app: Callable[..., Any]) -> tuple[Any, Any]:
    """Two apps with the same tasks, on databases of their own."""
    return make_jobs_app(sqlite_url), make_jobs_app(postgresql_url)


def run_what_is_queued(app: Any) -> list[Any]:
    """Run each message in the app's queue, as its worker does."""
    results = []
    with app.connection() as connection:
        channel = connection.default_channel
        channel.queue_declare(queue=app.conf.task_default_queue)
        while message := channel.basic_get(app.conf.task_default_queue, no_ack=True):
            args, kwargs, _ = json.loads(message.body)
            task = app.tasks[message.headers["task"]]
            task_id, headers = message.headers["id"], dict(message.headers)
            results.append(task.apply(args, kwargs, task_id=task_id, headers=headers))
    return results


# Two apps.


def test_two_apps_have_databases_of_their_own(two: tuple[Any, Any]) -> None:
    app, other = two
    first = app.jobs.handle()
    first.submit(app.tasks["tests.add"].s(1, 2))
    second = other.jobs.handle()
    ids = [second.submit(other.tasks["tests.add"].s(30, number)) for number in range(3)]
    assert [len(app.jobs.find()) for app in two] == [1, 3]
    for missing in set(ids) - {first.job_id}:
        with pytest.raises(UnknownJobError):
            app.jobs.attach(missing)
    run_what_is_queued(app)
    assert first.result(0) == 3
    assert second.job_status() is JobStatus.QUEUED
    run_what_is_queued(other)
    assert second.result(0) == 32
    assert [app.jobs.count_by_status()[JobStatus.FINISHED] for app in two] == [1, 3]


def test_job_of_one_app_is_not_run_by_another(two: tuple[Any, Any], tmp_path: Path) -> None:
    app, other = two
    handle = app.jobs.handle()
    job = Job(task="tests.append_line", args=[str(tmp_path / "lines"), "ran"])
    handle.submit(job)
    other.jobs.handle().submit(ADD)
    stored = handle.get_job()
    for each in (other, app):
        each.tasks["tests.append_line"].apply(
            stored.args, task_id=stored.task_id, headers=job_headers(handle.job_id, 1)
        )
        expected = [] if each is other else ["ran"]
        assert lines_of(tmp_path / "lines") == expected
    assert handle.job_status() is JobStatus.FINISHED
    assert [job.status for job in other.jobs.find()] == [JobStatus.QUEUED]


def test_shared_task_is_a_job_of_the_app_that_runs_it(two: tuple[Any, Any]) -> None:
    app, other = two
    other.jobs.submit_many([ADD, ADD])
    handles = [app.jobs.handle() for app in two]
    for app, handle in zip(two, handles, strict=True):
        handle.submit(Job(task="tests.shared"))
        run_what_is_queued(app)
        assert handle.result(0) == handle.job_id
        assert handle.job_message() == "shared"
    assert handles[0].job_id != handles[1].job_id
    assert app.tasks["tests.shared"].apply().get() is None


def test_shared_task_of_an_app_without_jobs_is_plain() -> None:
    plain = Celery("plain", broker="memory://", set_as_current=False)
    assert plain.tasks["tests.shared"].apply().get() is None


def test_second_jobs_for_an_app_is_refused(sqlite_url: str, make_jobs_app: Callable[..., Any]) -> None:
    app = make_jobs_app(sqlite_url)
    assert isinstance(app.jobs, Jobs)
    with pytest.raises(ApiUsageError, match=r"app\.jobs"):
        Jobs(app, sqlite_url)
    with pytest.raises(ApiUsageError, match="Celery app"):
        Jobs("app", sqlite_url)  # type: ignore[arg-type]  # that is the test


def test_use_after_close_opens_new_connections(factory: JobFactory) -> None:
    job_id = factory.jobs.handle().submit(ADD)
    factory.jobs.close()
    factory.jobs.close()
    assert factory.jobs.attach(job_id).job_status() is JobStatus.QUEUED


# Users.


def test_other_users_job_is_unknown(factory: JobFactory) -> None:
    ann = factory.jobs.handle(username="ann")
    job_id = ann.submit(ADD)
    before = factory.row(job_id)
    bob = factory.jobs.handle(username="bob")
    messages = []
    for missing in (job_id, job_id + 1):
        with pytest.raises(UnknownJobError) as caught:
            bob.attach(missing)
        messages.append(str(caught.value).replace(str(missing), "ID"))
    assert messages[0] == messages[1]
    assert factory.row(job_id) == before
    service = factory.jobs.attach(job_id)
    assert service.set_message("seen by the service") == "from the importer"
    assert ann.job_message() == "seen by the service"
    assert factory.jobs.handle(username="ann").attach(job_id) is JobStatus.QUEUED


def test_operation_on_a_job_gone_or_not_ones_own_is_unknown(factory: JobFactory) -> None:
    handle = factory.jobs.handle(username="ann")
    handle.submit(ADD)
    with factory.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE jobhandle_job SET username = 'bob'")
    before = factory.row(handle.job_id)
    for name, operation in OPERATIONS.items():
        if name not in ("job_id", "set_status, not settable"):
            with pytest.raises(UnknownJobError, match=str(handle.job_id)):
                operation(handle)
    assert factory.row(handle.job_id) == before


# Namespaces.


def test_job_of_another_namespace_is_unknown(factory: JobFactory, make_jobs_app: Callable[..., Any]) -> None:
    job_id = factory.jobs.handle().submit(ADD)
    other = make_jobs_app(factory.url, jobhandle_namespace="other")
    with pytest.raises(UnknownJobError):
        other.jobs.attach(job_id)
    assert other.jobs.find() == []
    assert other.jobs.events(job_id) == []
    assert other.jobs.cancel_many(ids=[job_id]) == 0
    assert sum(other.jobs.count_by_status().values()) == 0
    assert factory.jobs.attach(job_id).job_status() is JobStatus.QUEUED


def test_unique_key_is_per_namespace(factory: JobFactory, make_jobs_app: Callable[..., Any]) -> None:
    keyed = Job(task="tests.add", args=[1, 2], unique_key="scan:1")
    other = make_jobs_app(factory.url, jobhandle_namespace="other")
    assert factory.jobs.handle().submit(keyed) != other.jobs.handle().submit(keyed)
