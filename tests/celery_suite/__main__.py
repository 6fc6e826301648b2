"""Celery's own unit tests must have the same outcomes with `Jobs` in every app and without.

By hand, not in CI, for it takes a quarter of an hour::

    python -m tests.celery_suite                # in a temporary folder
    python -m tests.celery_suite --in FOLDER    # kept there, and used again
    python -m tests.celery_suite --integration 127.0.0.1:6379

Downloads the source distribution of the Celery that is installed here, installs it with what its tests need
and this library into a virtual environment of its own, runs ``t/unit`` both ways, and compares test by test.
Differing tests are run again singly, both ways, to leave out those that depend on others or on chance.
Prints the differences, and exits with 1 if there is one that `KNOWN` has not.

With ``--integration`` it runs instead those tests of ``t/integration`` that need a Redis alone, which has no
password, in its database 0. A real worker runs their tasks, and the apps of the tests have one database.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from celery import Celery

from jobhandle_celery import Jobs
from tests.celery_suite.recorder import DATABASE, REPORT
from tests.workers import ROOT

KNOWN: dict[str, str] = {
    "t/unit/app/test_app.py::test_App::test_send_task_registry_without_get_keyerror": (
        "its registry takes no tasks; an app's are evaluated before one is sent by name: it may be durable"
    ),
    "t/unit/tasks/test_trace.py::test_trace::test_outside_body_error": (
        "it asks for the very tracer that it set; a task's tracer claims a job's message before that"
    ),
    "t/unit/worker/test_worker.py::test_WorkController::test_pool_start_method_spawn": (
        "jobs need a pool that forks, and a worker that has another says so instead of starting"
    ),
}
"""Tests that differ, and the reason."""

LEFT_OUT = ("boto3", "moto", "mypy", "pre-commit", "pytest-celery")
"""Not installed: moto leaves threads behind, which fail later tests; no unit test needs the others."""

AS_HERE = ("celery", "kombu", "billiard", "SQLAlchemy", "redis")
"""Installed in the versions of this environment."""

INTEGRATION = [
    f"t/integration/test_{name}.py"
    for name in (
        *("inspect", "tasks", "group_chains", "redis_backend", "loader", "serialization", "security"),
        *("upgrade", "beat", "canvas"),
    )
]


@dataclass(frozen=True)
class Suite:
    """What is run, both ways."""

    folder: Path
    python: Path
    tests: list[str]
    options: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def main() -> int:
    """Run Celery's tests both ways; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--in", dest="folder", type=Path, help="keep what was downloaded and made, there")
    parser.add_argument("--integration", metavar="HOST:PORT", help="run the integration tests on this Redis")
    options = parser.parse_args()
    given = options.folder
    folder = Path(tempfile.mkdtemp(prefix="celery-suite-")) if given is None else given.resolve()
    try:
        suite = unit(folder) if options.integration is None else integration(folder, options.integration)
        return compare(suite)
    finally:
        if given is None:
            shutil.rmtree(folder)


def unit(folder: Path) -> Suite:
    """Return the unit tests."""
    return Suite(folder, prepare(folder), ["t/unit"], ["-n", "2", "--dist", "loadfile"])


def integration(folder: Path, place: str) -> Suite:
    """Return the integration tests that need a Redis alone."""
    python, (host, port) = prepare(folder), place.split(":")
    broker, database = f"redis://{place}/0", f"sqlite:///{folder}/jobs.sqlite3"
    with Jobs(Celery("schema", set_as_current=False), database) as jobs:
        jobs.upgrade_schema()
    names = {"TEST_BROKER": broker, "TEST_BACKEND": broker, "REDIS_HOST": host, "REDIS_PORT": port}
    return Suite(folder, python, INTEGRATION, ["-n", "0"], names | {DATABASE: database})


def compare(suite: Suite) -> int:
    """Print the tests with another outcome with `Jobs`; return the exit status."""
    plain, jobs = (outcomes(suite, with_jobs=with_jobs) for with_jobs in (False, True))
    print(f"{passed(plain)} tests pass without Jobs, {passed(jobs)} with them", flush=True)
    different = sorted(test for test in plain.keys() | jobs.keys() if plain.get(test) != jobs.get(test))
    if different:
        plain, jobs = (outcomes(suite, *different, with_jobs=with_jobs) for with_jobs in (False, True))
    unknown = 0
    for test in different:
        without, with_jobs = plain.get(test, "missing"), jobs.get(test, "missing")
        if without != with_jobs:
            unknown += test not in KNOWN
            print(f"{test}: {without} without Jobs, {with_jobs} with them: {KNOWN.get(test, 'unknown')}")
    return 1 if unknown else 0


def passed(outcomes: dict[str, str]) -> int:
    """Count the tests that pass."""
    return list(outcomes.values()).count("passed")


def prepare(folder: Path) -> Path:
    """Make the environment and the tests, unless they are there; return the environment's Python."""
    python, release = folder / "venv/bin/python", f"celery-{version('celery')}"
    if (folder / "tests").exists():
        return python
    venv.create(folder / "venv", with_pip=True, clear=True)
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = [f"celery=={version('celery')}", "--no-binary=celery", "--no-deps", f"--dest={folder}"]
    subprocess.run([*pip, "download", *source], check=True)
    with tarfile.open(folder / f"{release}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    requirements = folder / release / "requirements/test.txt"
    needed = [line for line in requirements.read_text().splitlines() if not line.startswith(LEFT_OUT)]
    requirements.write_text("\n".join(needed))
    as_here = [f"{name}=={version(name)}" for name in AS_HERE]
    install = ["install", f"--requirement={requirements}", *as_here, "pytest-xdist", f"--editable={ROOT}"]
    subprocess.run([*pip, *install], check=True)
    # Away from the package's source, so that they test the installed package.
    tests = folder / "making"
    tests.mkdir(exist_ok=True)
    for name in ("t", "requirements", "pyproject.toml", "setup.py"):
        shutil.move(folder / release / name, tests / name)
    tests.rename(folder / "tests")
    return python


def outcomes(suite: Suite, *tests: str, with_jobs: bool) -> dict[str, str]:
    """Run those tests, or all of a suite; return the outcome of each."""
    report = suite.folder / ("with-jobs.txt" if with_jobs else "without.txt")
    report.unlink(missing_ok=True)
    # Celery's own comes with pytest-celery, which is left out.
    plugins = ["pytester", "celery.contrib.pytest", "tests.celery_suite.recorder"]
    plugins += ["tests.celery_suite.plugin"] if with_jobs else []
    options = ["-q", "-p", "no:cacheprovider", *(part for plugin in plugins for part in ("-p", plugin))]
    options += [*suite.options, *(["-n", "0", "--dist", "no"] if tests else [])]
    with report.with_suffix(".log").open("w") as log:
        subprocess.run(
            ["nice", "-n", "10", str(suite.python), "-m", "pytest", *options, *(tests or suite.tests)],
            cwd=suite.folder / "tests",
            env={**os.environ, **suite.environment, REPORT: str(report)},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    lines = (line.split(" ", maxsplit=1) for line in report.read_text().splitlines())
    return {test: outcome for outcome, test in lines}


if __name__ == "__main__":
    sys.exit(main())
