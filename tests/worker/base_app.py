"""The app of this folder's workers, and the decorator of its tasks.

Without a database in the environment it is a plain Celery app, to compare with.
"""

import json
import os
from collections.abc import Callable
from typing import Any

from celery import Celery

from jobhandle_celery import Jobs

app = Celery("bodies", broker=os.environ.get("JOBHANDLE_TEST_BROKER_URL", "memory://"), set_as_current=False)
app.conf.update(json.loads(os.environ.get("JOBHANDLE_TEST_SETTINGS", "{}")))


def task(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Define a task `worker.<name of the function>` of this app alone."""

    def define(body: Callable[..., Any]) -> Callable[..., Any]:
        decorate: Any = app.task
        defined: Callable[..., Any] = decorate(name=f"worker.{body.__name__}", shared=False, **options)(body)
        return defined

    return define


if database_url := os.environ.get("JOBHANDLE_TEST_DATABASE_URL"):
    Jobs(app, database_url)
