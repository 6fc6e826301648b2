"""A `Jobs` with a given database and settings."""

from typing import Any

from jobhandle_celery import Jobs
from tests.apps import make_app


def jobs_of(database: Any, **settings: Any) -> Any:
    return Jobs(make_app("memory://", None, settings), database)
