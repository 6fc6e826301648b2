"""A sample of the suite that covers every module: `python -m pytest -p tests.one_case_each`.

CI runs it with the oldest dependencies and on another Python, which draws other tests. A difference between
versions shows in all cases of a test and in most tests of a module.
"""

import sys
from collections import defaultdict
from zlib import crc32

import pytest

TESTS = 2
"""Tests of a module, at most."""


@pytest.hookimpl(trylast=True)  # after `-m` and `-k`
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep some tests of each module, and one case of each, drawn by their names."""
    modules: defaultdict[str, defaultdict[str, list[pytest.Item]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        test = item.nodeid.partition("[")[0]
        modules[test.partition("::")[0]][test].append(item)
    kept = {
        cases[_draw(test) % len(cases)]
        for tests in modules.values()
        for test, cases in sorted(tests.items(), key=lambda found: _draw(found[0]))[:TESTS]
    }
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def _draw(name: str) -> int:
    return crc32(f"{sys.version_info.minor} {name}".encode())
