"""A pytest plugin: every Celery app that is made gets its `Jobs`, as the apps of a user's project have."""

import tempfile
from typing import Any

from celery import Celery

from jobhandle_celery import Jobs

_plain_init = Celery.__init__
_DATABASE = f"sqlite:///{tempfile.gettempdir()}/never-opened.sqlite3"  # no job is submitted


def _init(self: Celery, *args: Any, **kwargs: Any) -> None:
    _plain_init(self, *args, **kwargs)
    Jobs(self, _DATABASE)


Celery.__init__ = _init  # type: ignore[method-assign,assignment]
