"""An app whose result backend is the rows."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.durable.service import make_service


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Any]:
    app: Any = make_service("memory://", sqlite_url, {"result_backend": "jobhandle"})
    yield app
    app.jobs.close()
