"""The template of the worker container's `app.py`: pytest-celery replaces its first three assignments."""

import os
from typing import Any

from celery import Celery

from jobhandle_celery import Jobs

imports = None

app = Celery("celery_test_app")
config: Any
config = None

if config:
    app.config_from_object(config)
jobs = Jobs(app, os.environ.get("JOBHANDLE_DATABASE_URL"))
