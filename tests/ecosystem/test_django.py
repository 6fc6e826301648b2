"""Django 5.2: `DjangoTask`, `transaction.on_commit`, bodies that use the ORM, and django-celery-beat 2.9."""

import json
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, _state
from django.db import transaction
from django.db.backends.signals import connection_created
from django.utils import timezone

from jobhandle_celery import Jobs, JobStatus
from tests.documentation import files
from tests.embedded import embedded_worker
from tests.support import eventually

pytestmark = pytest.mark.ecosystem


@pytest.fixture(scope="module")
def site(redis_database_url: str, sqlite_databases: Any) -> Iterator[Any]:
    """The Django project, its Celery app with `Jobs` on the same SQLite file, and a worker."""
    state: Any = _state
    finalizers = set(state._on_app_finalizers)
    database_url = sqlite_databases.create()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SITE_DATABASE", database_url.removeprefix("sqlite:///"))
        patch.setenv("SITE_BROKER", redis_database_url)
        patch.setenv("DJANGO_SETTINGS_MODULE", "tests.ecosystem.django_site.settings")
        import django
        from django.core.management import call_command

        django.setup()
        call_command("migrate", run_syncdb=True, verbosity=0)
        app = Celery("site", set_as_current=False)
        app.config_from_object("django.conf:settings", namespace="CELERY")
        with Jobs(app, database_url) as jobs:
            from tests.ecosystem.django_site import models, tasks

            # Threads, each of which has connections of its own to Django's database.
            with embedded_worker(app, "threads"):
                yield SimpleNamespace(app=app, jobs=jobs, Order=models.Order, tasks=tasks)
    sqlite_databases.drop(database_url)
    state._on_app_finalizers &= finalizers


@pytest.fixture(autouse=True)
def _app_of_the_site(site: Any) -> None:
    site.app.set_current()


@pytest.fixture
def order(site: Any) -> Any:
    return site.Order.objects.create(path="a.tif")


@pytest.fixture
def submitted(site: Any) -> Any:
    """Return the jobs that were submitted since the beginning of the test."""
    before = site.jobs.find(limit=1)
    return lambda: [job for job in site.jobs.find() if not before or job.id > before[0].id]


def finish(site: Any, job: Any) -> Any:
    """Wait for the end of a job, and return its record."""
    handle = site.jobs.attach(job.id)
    handle.wait(60)
    return handle.get_job()


def test_delay_on_commit_submits_one_job_at_the_commit(site: Any, order: Any, submitted: Any) -> None:
    thumbnail = site.tasks.thumbnail
    with transaction.atomic():
        order.path = "b.tif"
        order.save()
        thumbnail.delay_on_commit(order.id)
        thumbnail.apply_async_on_commit((order.id,), countdown=3600)
        assert submitted() == []
    later, now = submitted()
    assert later.status is JobStatus.WAITING
    assert finish(site, now).result == f"b.tif, job {now.id}"
    order.refresh_from_db()
    assert order.thumbnails == 1
    site.jobs.attach(later.id).cancel_job()


def test_job_of_delay_on_commit_is_of_the_user_of_the_call(site: Any, order: Any, submitted: Any) -> None:
    """The transaction ends after the block, as with ATOMIC_REQUESTS and a block in the view."""
    with transaction.atomic():
        with site.jobs.submitting(username="ann", groupname="lab"):
            site.tasks.thumbnail.delay_on_commit(order.id)
        with site.jobs.submitting(username="bob"):
            site.tasks.thumbnail.apply_async_on_commit((order.id,))
    assert [(job.username, job.groupname) for job in submitted()] == [("bob", None), ("ann", "lab")]
    for job in submitted():
        assert finish(site, job).status is JobStatus.FINISHED


def test_rollback_submits_nothing(site: Any, order: Any, submitted: Any) -> None:
    thumbnail = site.tasks.thumbnail
    with transaction.atomic():
        thumbnail.delay_on_commit(order.id)
        transaction.on_commit(lambda: site.jobs.submit(thumbnail.s(order.id)))
        transaction.set_rollback(True)
    with transaction.atomic():
        with transaction.atomic():  # a savepoint
            thumbnail.delay_on_commit(order.id)
            transaction.set_rollback(True)
        transaction.on_commit(lambda: site.jobs.submit(thumbnail.s(order.id)))
    (job,) = submitted()
    assert finish(site, job).result == f"a.tif, job {job.id}"


def test_plain_task_beside_jobs_is_as_without(site: Any, order: Any, submitted: Any) -> None:
    with transaction.atomic():
        site.tasks.plain_thumbnail.delay_on_commit(order.id)

    def done() -> bool:
        order.refresh_from_db()
        return bool(order.thumbnails)

    eventually(done)
    assert submitted() == []


def test_connections_of_django_are_closed_after_each_job(site: Any, order: Any) -> None:
    """Celery's fixup for Django does it, so that no body gets one that its server has ended meanwhile."""
    opened: list[Any] = []

    def note(connection: Any, **_: Any) -> None:
        opened.append(connection)

    connection_created.connect(note)
    for _ in range(3):
        site.tasks.thumbnail.delay(order.id).get(timeout=60)
    connection_created.disconnect(note)
    assert len(opened) == 3


def test_entry_of_django_celery_beat_is_one_job(site: Any, order: Any, submitted: Any) -> None:
    from django_celery_beat.models import IntervalSchedule, PeriodicTask
    from django_celery_beat.schedulers import DatabaseScheduler

    every_day, _ = IntervalSchedule.objects.get_or_create(every=1, period="days")
    PeriodicTask.objects.create(
        name="nightly",
        task="site.thumbnail",
        interval=every_day,
        kwargs=json.dumps({"order_id": order.id}),
        headers=json.dumps({"tenant": "acme"}),
        priority=3,
        expire_seconds=3600,
        last_run_at=timezone.now() - timedelta(days=2),
    )
    beat = DatabaseScheduler(app=site.app, max_interval=1)
    for _ in range(10):
        beat.tick()
    (job,) = submitted()
    job = finish(site, job)
    assert job.result == f"a.tif, job {job.id}"
    assert job.headers == {"tenant": "acme", "periodic_task_name": "nightly", "celery_beat_task": True}
    assert job.priority == 3
    assert timedelta(minutes=50) < job.expires - job.submitted <= timedelta(hours=1)


def test_unique_key_of_an_entry_of_django_celery_beat_is_that_of_its_task(
    site: Any, order: Any, submitted: Any
) -> None:
    """Its tables have no field for the option; the task of docs/how-to/django.md has it as an attribute."""
    from django_celery_beat.schedulers import DatabaseScheduler, ModelEntry

    names: dict[str, Any] = {"__name__": "mysite.nightly"}
    exec(files("docs/how-to/django.md")["mysite/nightly.py"], names)
    beat = DatabaseScheduler(app=site.app)

    def apply_twice(task: str, *args: Any) -> list[Any]:
        """Apply an entry twice, with an option of jobs, and return the unique keys of the jobs."""
        options = {"unique_key": "of the entry", "queue": "nobody"}
        entry = ModelEntry.from_entry(
            task, app=site.app, task=task, args=args, schedule=timedelta(days=1), options=options
        )
        for _ in range(2):
            beat.apply_async(entry, advance=False)
        return [job.unique_key for job in submitted() if job.task == task]

    assert apply_twice("site.thumbnail", order.id) == [None, None]
    assert apply_twice(names["clean_up"].name) == ["clean_up"]
    site.jobs.cancel_many(status="Queued")
