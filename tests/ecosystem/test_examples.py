"""The examples: each has tests of its own, which use the pytest plugin as a service does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ecosystem

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.mark.timeout(600)  # of a whole suite, in a process of its own
@pytest.mark.parametrize("name", ["django", "fastapi", "flask"])
def test_tests_of_the_example_pass(name: str) -> None:
    options = ("-q", "-p", "no:xdist", "-p", "no:cacheprovider")
    elsewhere = {"BROKER_URL": "redis://127.0.0.1:1", "DATABASE_URL": "postgresql+psycopg://127.0.0.1:1/none"}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=EXAMPLES / name,
        env={**os.environ, **elsewhere},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " passed" in ran.stdout
