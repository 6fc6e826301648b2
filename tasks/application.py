"""The app, and its jobs. The one place that wires."""

from celery import Celery
from celery.signals import worker_init

from jobhandle_celery import Jobs

app = Celery(
    "tasks",
    # By name: read when it is first needed, so that `python -m tasks` may set the environment before.
    config_source="tasks.celeryconfig",
    include=["tasks.checksum", "tasks.thumbnail", "tasks.script"],
)
jobs = Jobs(app)


@worker_init.connect
def make_tables(**_: object) -> None:
    """Make the tables if need be; where databases are somebody's duty, that is for the deployment to do."""
    jobs.upgrade_schema()
