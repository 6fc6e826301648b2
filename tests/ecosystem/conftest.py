"""Services whose worker is this process."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import _state

from jobhandle_celery.runtime import runtime_of
from tests.ecosystem.service import Service, fail, retry_tomorrow
from tests.in_process import become_worker


@pytest.fixture
def make_service(make_jobs_app: Callable[..., Any]) -> Iterator[Callable[..., Service]]:
    """Make a service whose worker is this process: `make_service(database_url, broker_url)`."""
    made: list[Any] = []

    def make(database_url: str, broker_url: str = "memory://") -> Service:
        app = make_jobs_app(database_url, broker_url, task_publish_retry=False, jobhandle_lease=3600)
        app.set_current()  # tools find tasks in the registry of the current app
        become_worker(app)
        made.append(app)
        service = Service(app, database_url)
        service.task(fail)
        service.task(retry_tomorrow, bind=True)
        return service

    yield make
    for app in made:
        runtime_of(app).worker = None
    state: Any = _state
    state._set_current_app(None)


@pytest.fixture
def service(sqlite_url: str, make_service: Callable[..., Service]) -> Service:
    return make_service(sqlite_url)
