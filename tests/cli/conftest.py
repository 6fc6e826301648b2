"""Fixtures of the command line's tests."""

from collections.abc import Iterator
from typing import Any

import pytest

from jobhandle_celery.cli.doctor import findings as doctor_findings
from tests.apps import make_app
from tests.cli.findings import NewApp


@pytest.fixture
def new_app(sqlite_url: str) -> Iterator[NewApp]:
    """Makes apps that need no broker."""
    apps: list[Any] = []

    def make(broker: str = "memory://", database: str = sqlite_url, **settings: Any) -> Any:
        app = make_app(broker, database, settings)
        # Celery adds the shared tasks of all apps that this process has imported.
        for name in [name for name in app.tasks if not name.startswith(("tests.", "celery."))]:
            del app.tasks[name]
        apps.append(app)
        return app

    yield make
    for app in apps:
        app.jobs.close()


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for workers: there is none."""
    monkeypatch.setattr(doctor_findings, "INSPECT_TIMEOUT", 0.01)
