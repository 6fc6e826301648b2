"""What the tests of the command line share."""

from collections.abc import Iterator

import pytest

from tests.test_handle import Stage


@pytest.fixture
def stage(database_url: str) -> Iterator[Stage]:
    stage = Stage(database_url)
    yield stage
    stage.close()
