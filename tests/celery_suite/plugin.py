"""A pytest plugin: every Celery app that is made gets its `Jobs`, as the apps of a user's project have."""

import os
import tempfile
from typing import Any

from celery import Celery

from jobhandle_celery import Jobs
from tests.celery_suite.recorder import DATABASE

_plain_init = Celery.__init__
# The unit tests start no worker: nothing opens it.
_url = os.environ.get(DATABASE, f"sqlite:///{tempfile.gettempdir()}/never-opened.sqlite3")


def _init(self: Celery, *args: Any, **kwargs: Any) -> None:
    _plain_init(self, *args, **kwargs)
    Jobs(self, _url)


Celery.__init__ = _init  # type: ignore[method-assign,assignment]
