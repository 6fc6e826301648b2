"""Apps whose messages a test reads."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.broker.messages import Make


@pytest.fixture
def make(sqlite_url: str, make_jobs_app: Callable[..., Any]) -> Make:
    def make(broker_url: str = "memory://", **settings: Any) -> Any:
        return make_jobs_app(sqlite_url, broker_url, **settings)

    return make
