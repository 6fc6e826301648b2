"""A cut of the suite that still has every test: `python -m pytest -p tests.one_case_each`.

CI runs it where another Python or other versions of the dependencies are tried.
"""

from itertools import groupby
from zlib import crc32

import pytest


@pytest.hookimpl(trylast=True)  # after `-m` and `-k`
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep one case of each parametrised test, chosen by its name, so that each database has its share."""
    kept = []
    for name, cases in groupby(items, key=lambda item: item.nodeid.partition("[")[0]):
        candidates = list(cases)
        kept.append(candidates[crc32(name.encode()) % len(candidates)])
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept
