"""A pytest plugin: it writes the outcome of each test, one a line, to the file that the environment names."""

import os
from collections import defaultdict

import pytest

REPORT = "CELERY_SUITE_REPORT"
DATABASE = "CELERY_SUITE_DATABASE"
"""The URL of the database of the plugin's `Jobs`."""
_outcomes: defaultdict[str, set[str]] = defaultdict(set)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Record the outcome of one phase of a test, in the process that receives all reports."""
    _outcomes[report.nodeid].add(report.outcome)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the worst outcome of each test."""
    if not hasattr(session.config, "workerinput"):
        with open(os.environ[REPORT], "w") as file:
            for test, came_to in _outcomes.items():
                worst = next(word for word in ("failed", "skipped", "passed") if word in came_to)
                file.write(f"{worst} {test}\n")
