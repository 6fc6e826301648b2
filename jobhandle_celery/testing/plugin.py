"""The pytest plugin. It imports nothing of the library before a test uses a fixture.

`jobhandle_jobs` is the fixture; `jobs` is its short name, which a project may use for something else.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..status import JobStatus
    from .database import GivenDatabase
    from .faults import Faults
    from .kit import JobsKit
    from .sqlite import SqliteFiles

MARKER = "jobhandle"
INI = "jobhandle_app"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the setting of the app."""
    parser.addini(INI, "the Celery app with Jobs that the tests use, as celery -A names it", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker `jobhandle`, by which a test sets Celery's configuration."""
    config.addinivalue_line(
        "markers", f"{MARKER}(**settings): Celery settings of the app while the fixture jobs is in use"
    )


@pytest.fixture(scope="session")
def jobhandle_sqlite(tmp_path_factory: pytest.TempPathFactory) -> "SqliteFiles":
    """The SQLite files of the tests, one after another."""
    from .sqlite import SqliteFiles

    return SqliteFiles(tmp_path_factory.mktemp("jobhandle"))


@pytest.fixture(scope="session")
def jobhandle_database(jobhandle_sqlite: "SqliteFiles") -> Any:
    """The database of the jobs; override it to return the URL of one on a server."""
    return jobhandle_sqlite


@pytest.fixture(scope="session")
def _jobhandle_given() -> "dict[Any, GivenDatabase]":
    return {}


@pytest.fixture
def jobhandle_app(pytestconfig: pytest.Config) -> Any:
    """The Celery app of the tests, or its `Jobs`; override it to choose one.

    By default the one of the setting ``jobhandle_app``, else the one app in this process that has `Jobs`.
    """
    from .discovery import app_in_use, app_named

    name = pytestconfig.getini(INI)
    return app_named(name) if name else app_in_use()


@pytest.fixture
def jobhandle_jobs(
    request: pytest.FixtureRequest,
    jobhandle_app: Any,
    jobhandle_database: Any,
    _jobhandle_given: "dict[Any, GivenDatabase]",
) -> "Iterator[JobsKit]":
    """The `Jobs` of the app, a `JobsKit`, with a fresh database; the app reaches no server meanwhile."""
    from .database import DatabaseOfTests, GivenDatabase
    from .discovery import jobs_of
    from .kit import JobsKit
    from .redirect import redirected

    jobs = jobs_of(jobhandle_app)
    conf: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers(MARKER))):  # the closest one last
        conf |= marker.kwargs
    database = jobhandle_database
    if not isinstance(database, DatabaseOfTests):
        if database not in _jobhandle_given:
            _jobhandle_given[database] = GivenDatabase(database)
        database = _jobhandle_given[database]
    with database.opened(), redirected(jobs, database, conf) as (runtime, mailbox):
        yield JobsKit(jobs, runtime, mailbox, database)


@pytest.fixture
def _jobhandle_faults(jobhandle_jobs: "JobsKit") -> "Faults":
    from .faults import Faults

    return Faults(jobhandle_jobs)


@pytest.fixture
def advance(_jobhandle_faults: "Faults") -> Callable[..., None]:
    """Move the clock of the jobs' database on: ``advance(hours=1)``."""
    return _jobhandle_faults.advance


@pytest.fixture
def lose_worker(_jobhandle_faults: "Faults") -> "Callable[[int], JobStatus]":
    """Lose the worker of a job: ``lose_worker(job_id)``; it returns the job's status."""
    return _jobhandle_faults.lose_worker


@pytest.fixture
def deliver_twice(_jobhandle_faults: "Faults") -> Callable[[int], None]:
    """Have the broker deliver the message of a job once more: ``deliver_twice(job_id)``."""
    return _jobhandle_faults.deliver_twice


@pytest.fixture
def database_away(_jobhandle_faults: "Faults") -> Callable[[], AbstractContextManager[None]]:
    """Make the jobs' database unreachable: ``with database_away(): ...``."""
    return _jobhandle_faults.database_away


@pytest.fixture
def jobs(jobhandle_jobs: "JobsKit") -> "JobsKit":
    """Short for `jobhandle_jobs`."""
    return jobhandle_jobs
