"""Fixtures for the tests of the test kit, which use its fixtures themselves."""

from typing import Any

import alembic.command  # noqa: F401 -- pytester drops what is imported first in one of its runs
import pytest

import jobhandle_celery.testing.discovery
import jobhandle_celery.testing.faults
import jobhandle_celery.testing.kit
import jobhandle_celery.testing.redirect  # noqa: F401
from tests.testing import service


@pytest.fixture
def jobhandle_app() -> Any:
    return service.app


@pytest.fixture(autouse=True)
def _no_steps() -> None:
    service.steps.clear()
    service.functions.clear()
