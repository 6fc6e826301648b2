"""A job's message equals plain Celery's, also on a real broker."""

import pytest

from tests.broker.conftest import make
from tests.broker.messages import Make
from tests.broker.options import CASES
from tests.broker.plain import compare

__all__ = ["make"]

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("case", CASES)
def test_job_message_equals_plain_celerys_on_a_broker(case: str, broker_url: str, make: Make) -> None:
    """As test_says does in memory (faults 13, 19)."""
    compare(case, broker_url, make)
