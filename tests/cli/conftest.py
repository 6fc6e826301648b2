"""Fixtures and helpers of the command line's tests."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.stage import Stage


@pytest.fixture
def sqlite_stage(sqlite_url: str) -> Iterator[Stage]:
    """A stage for what does not depend on the kind of database."""
    stage = Stage(sqlite_url)
    yield stage
    stage.close()


def update_column(stage: Stage, column: Any, value: object, *where: Any) -> None:
    """Set a column of the rows that match."""
    with stage.engine.begin() as connection:
        connection.execute(column.table.update().where(*where).values({column.name: value}))


def set_times(stage: Stage, column: Any, time: datetime, *where: Any) -> None:
    """Set a column of times, as if the event had happened then."""
    update_column(stage, column, time, *where)
