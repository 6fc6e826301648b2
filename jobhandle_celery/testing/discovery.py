"""Finds the app of the service under test."""

import gc
from typing import Any

from celery import Celery
from celery.app.utils import find_app

from .. import celery_compat
from ..errors import ConfigurationError, shown
from ..jobs import Jobs

CHOOSE = (
    "Name it, as `celery -A` does, in pytest's configuration (jobhandle_app = shop:app), "
    "or return it from a fixture jobhandle_app."
)


def app_named(name: str) -> Any:
    """Return the app that a name as of ``celery -A`` stands for.

    Raises:
        ConfigurationError: there is none.
    """
    try:
        return find_app(name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"jobhandle_app: {name} was not found: {error}") from error


def app_in_use() -> Any:
    """Return the one app of this process that has `Jobs`.

    Raises:
        ConfigurationError: there is none, or several.
    """
    found = _with_jobs()
    if len(found) > 1:
        gc.collect()  # apps of earlier tests
        found = _with_jobs()
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigurationError(
            "No app with Jobs has been imported: which one do these tests use? "
            f"Import the module that makes it, before the fixture jobs is set up. {CHOOSE}"
        )
    names = ", ".join(sorted(map(repr, found)))
    raise ConfigurationError(f"{len(found)} apps have Jobs: {names}. Which one do these tests use? {CHOOSE}")


def _with_jobs() -> list[Celery]:
    return [app for app in celery_compat.apps_of_process() if isinstance(getattr(app, "jobs", None), Jobs)]


def jobs_of(app: Any) -> Jobs:
    """Return the `Jobs` of what a fixture or a name has given: an app, or the `Jobs` itself.

    Raises:
        ConfigurationError: it has none.
    """
    if isinstance(app, Jobs):
        return app
    jobs = getattr(app, "jobs", None)
    if not isinstance(jobs, Jobs):
        raise ConfigurationError(
            f"jobhandle_app: {shown(app)} has no Jobs. Accepted: the Celery app for which Jobs(app) was made."
        )
    return jobs
