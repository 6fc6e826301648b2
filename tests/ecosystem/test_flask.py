"""Flask 3.1: the documented `FlaskTask` runs bodies of jobs within the app's context."""

from collections.abc import Iterator
from typing import Any

import celery
import pytest
from celery import Celery
from flask import Flask, current_app, g, has_app_context

from jobhandle_celery import Job, JobFailedError, Jobs, JobStatus, current_job
from tests.embedded import embedded_worker
from tests.support import eventually

pytestmark = pytest.mark.ecosystem

CeleryTask: Any = celery.Task


def celery_init_app(app: Any) -> Any:
    """Make the Celery app, as Flask's documentation does."""

    class FlaskTask(CeleryTask):  # type: ignore[misc]  # untyped in its stubs
        def __call__(self, *args: object, **kwargs: object) -> object:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery_app: Any = Celery(app.name, task_cls=FlaskTask)
    celery_app.config_from_object(app.config["CELERY"])
    celery_app.set_default()
    app.extensions["celery"] = celery_app
    return celery_app


class Service:
    """A Flask app with jobs, and what its teardown has seen."""

    def __init__(self, database_url: str, broker_url: str) -> None:
        self.flask: Any = Flask("shop")
        self.flask.config.from_mapping(
            GREETING="hello", CELERY={"broker_url": broker_url, "jobhandle_sweep_interval": 0.2}
        )
        self.ended: list[str] = []
        self.flask.teardown_appcontext(lambda error: self.ended.append(f"{g.get('name')}: {error}"))
        self.celery: Any = celery_init_app(self.flask)
        self.jobs = Jobs(self.celery, database_url)


shared_task: Any = celery.shared_task


@shared_task(name="flask.greet", ignore_result=False)  # type: ignore[untyped-decorator]
def greet(name: str) -> str:
    g.name = name
    job: Any = current_job()
    return f"{current_app.config['GREETING']} {name}, {'a task' if job is None else f'job {job.job_id}'}"


@shared_task(name="flask.greet_durably", durable=True, bind=True)  # type: ignore[untyped-decorator]
def greet_durably(self: Any, name: str) -> str:
    g.name = f"{name} {self.request.retries}"
    if self.request.retries == 0:
        raise self.retry(countdown=0)
    return f"{current_app.config['GREETING']} {name}"


@shared_task(name="flask.fail")  # type: ignore[untyped-decorator]
def fail() -> None:
    g.name = "fail"
    raise LookupError(current_app.config["GREETING"])


@shared_task(name="flask.run_until_cancelled")  # type: ignore[untyped-decorator]
def run_until_cancelled() -> None:
    g.name = "cancelled"
    job: Any = current_job()
    job.set_message("begun")
    eventually(job.cancel_requested)
    job.raise_if_cancelled()


@pytest.fixture(scope="module")
def service(redis_database_url: str, sqlite_databases: Any) -> Iterator[Service]:
    database_url = sqlite_databases.create()
    service = Service(database_url, redis_database_url)
    with embedded_worker(service.celery):
        yield service
    service.jobs.close()
    sqlite_databases.drop(database_url)


@pytest.fixture(autouse=True)
def _celery_of_the_service(service: Service) -> None:
    service.celery.set_current()
    service.ended.clear()


def test_body_has_the_apps_context(service: Service) -> None:
    handle = service.jobs.handle()
    job_id = handle.submit(greet.s("ann"))
    assert handle.result(timeout=60) == f"hello ann, job {job_id}"
    assert service.ended == ["ann: None"]
    assert not has_app_context()


def test_plain_task_of_the_same_worker_has_it_too(service: Service) -> None:
    greet.delay("bob")
    eventually(lambda: service.ended == ["bob: None"])


def test_each_attempt_of_durable_task_has_a_context(service: Service) -> None:
    assert greet_durably.delay("ann").get(timeout=60) == "hello ann"
    assert service.ended == ["ann 0: Retry in 0s", "ann 1: None"]


def test_context_ends_with_the_error_of_the_body(service: Service) -> None:
    handle = service.jobs.handle()
    handle.submit(Job(task="flask.fail"))
    with pytest.raises(JobFailedError, match="hello"):
        handle.result(timeout=60)
    assert service.ended == ["fail: hello"]


def test_context_ends_when_the_body_stops_on_request(service: Service) -> None:
    handle = service.jobs.handle()
    handle.submit(run_until_cancelled.s())
    eventually(lambda: handle.job_message() == "begun")
    handle.cancel_job()
    assert handle.wait(60) is JobStatus.CANCELLED
    assert [ended.partition(":")[0] for ended in service.ended] == ["cancelled"]
