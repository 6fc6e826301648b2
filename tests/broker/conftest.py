"""Apps whose messages a test reads."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.apps import make_app
from tests.broker.messages import Make


@pytest.fixture
def make(sqlite_url: str) -> Iterator[Make]:
    made: list[Any] = []

    def make(broker_url: str = "memory://", **settings: Any) -> Any:
        queue = {"task_default_queue": f"queue-{uuid.uuid4().hex}"}
        made.append(make_app(broker_url, sqlite_url, queue | settings))
        return made[-1]

    yield make
    for app in made:
        app.jobs.close()
