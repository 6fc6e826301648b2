"""Fixtures and helpers of the command line's tests."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.job_factory import JobFactory


@pytest.fixture
def sqlite_factory(sqlite_url: str) -> Iterator[JobFactory]:
    """A factory for what does not depend on the kind of database."""
    factory = JobFactory(sqlite_url)
    yield factory
    factory.close()


def update_column(factory: JobFactory, column: Any, value: object, *where: Any) -> None:
    """Set a column of the rows that match."""
    with factory.engine.begin() as connection:
        connection.execute(column.table.update().where(*where).values({column.name: value}))


def set_times(factory: JobFactory, column: Any, time: datetime, *where: Any) -> None:
    """Set a column of times, as if the event had happened then."""
    update_column(factory, column, time, *where)
