"""Whole lives of jobs while all connections are cut again and again: the rows are right.

The fault is at any byte here, not only between requests; so a caller may be told that the database did not
answer, and asks again with the same words, as a worker does.
"""

import uuid

import pytest

from tests.fire.lives import live_through
from tests.fire.proxy import PostgresqlProxy
from tests.store.bench import Bench

pytestmark = [pytest.mark.fire, pytest.mark.slow]


def test_all_connections_cut_again_and_again_change_nothing(postgresql_url: str) -> None:
    namespace = str(uuid.uuid4())
    beside = Bench(postgresql_url, namespace=namespace)
    with PostgresqlProxy(postgresql_url) as proxy:
        through = Bench(proxy.url, namespace=namespace)
        live_through(through, proxy.cut_all, beside)
        through.close()
    beside.close()
