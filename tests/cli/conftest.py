"""What the tests of the command line share."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.test_handle import Stage


@pytest.fixture
def stage(database_url: str) -> Iterator[Stage]:
    stage = Stage(database_url)
    yield stage
    stage.close()


def set_moments(stage: Stage, column: Any, moment: datetime, *where: Any) -> None:
    """Let a moment of some rows have been another."""
    with stage.engine.begin() as connection:
        connection.execute(column.table.update().where(*where).values({column.name: moment}))
