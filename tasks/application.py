"""The Celery app and its jobs."""

from celery import Celery
from celery.signals import worker_init

from jobhandle_celery import Jobs

app = Celery(
    "tasks",
    # By name: read at the first use, so that `python -m tasks` can set environment variables before.
    config_source="tasks.celeryconfig",
    include=["tasks.checksum", "tasks.thumbnail", "tasks.script"],
)
jobs = Jobs(app)


@worker_init.connect
def create_tables(**_: object) -> None:
    """Create the tables if they are missing. In production, run ``celery -A tasks jobs upgrade`` instead."""
    jobs.upgrade_schema()
