"""An outcome that the database rejects is stored in a plainer form."""

import logging
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import make_url

from jobhandle_celery.models import Failure
from jobhandle_celery.status import JobStatus
from jobhandle_celery.worker.outcomes import Cancelled, Failed, Finished, GivenBack, Outcome, Retried
from tests.databases import DATABASES, MariadbDatabases, PostgresqlDatabases, SqliteFiles
from tests.servers import execute
from tests.store.harness import Harness

ODD = "café ☕"
LONG = "x" * 1000


def refuse(url: str, table: str, column: str, condition: str) -> None:
    """Make a database reject rows permanently; in the condition the column is ``{}``."""
    if make_url(url).get_backend_name() == "sqlite":
        for event in ("INSERT", "UPDATE"):
            execute(
                url,
                f"CREATE TRIGGER refuse_{table}_{event} BEFORE {event} ON {table} "
                f"WHEN {condition.format('NEW.' + column)} BEGIN SELECT RAISE(ABORT, 'refused {ODD}'); END",
            )
    else:
        execute(url, f"ALTER TABLE {table} ADD CHECK (NOT coalesce({condition.format(column)}, false))")


@dataclass(frozen=True)
class Case:
    outcome: type[Outcome]
    arguments: tuple[Any, ...]
    refused: tuple[str, str, str]
    """Table, column, and a condition on it."""
    status: JobStatus
    message: str
    logged: str


def no(table: str, column: str, words: str = ODD) -> tuple[str, str, str]:
    return f"jobhandle_{table}", column, f"replace({{0}}, '{words}', '') <> {{0}}"


def failure(message: str) -> tuple[Failure]:
    return (Failure("task", "ValueError", message, "Traceback"),)


SPELT = r"caf\xe9 \u2615"
AGAIN = '{"queue": "q"}'
CASES = {
    "fail, text": Case(
        Failed, failure(ODD), no("job", "message"), JobStatus.ERROR, f"ValueError: {SPELT}", "as ASCII"
    ),
    "fail, length": Case(
        Failed,
        failure(LONG),
        ("jobhandle_job_event", "message", "length({}) > 300"),
        JobStatus.ERROR,
        "ValueError: " + "x" * 200,
        "cut at 200",
    ),
    "fail, words": Case(
        Failed,
        failure("secret"),
        no("job", "message", "secret"),
        JobStatus.ERROR,
        "the error could not be stored",
        "without message and traceback",
    ),
    "finish": Case(
        Finished,
        ('"secret"',),
        no("job", "result", "secret"),
        JobStatus.ERROR,
        "the body returned, and its result could not be stored: ",
        "without its result",
    ),
    "retry, reason": Case(
        Retried, (AGAIN, None, 60.0, ODD), no("job_event", "message"), JobStatus.REQUEUED, "", "as ASCII"
    ),
    "retry, signature": Case(
        Retried,
        (AGAIN, None, None, "retry"),
        no("job", "retry", "queue"),
        JobStatus.ERROR,
        "the retry could not be stored: ",
        "as an Error",
    ),
    "stop": Case(Cancelled, (ODD,), no("job", "message"), JobStatus.CANCELLED, SPELT, "as ASCII"),
    "stop, length": Case(
        Cancelled,
        (LONG,),
        ("jobhandle_job", "message", "length({}) > 300"),
        JobStatus.CANCELLED,
        "x" * 200,
        "cut at 200",
    ),
}


def test_every_outcome_is_refused_in_some_case() -> None:
    assert {case.outcome for case in CASES.values()} | {GivenBack} == set(Outcome.__subclasses__())


@pytest.fixture(params=DATABASES)
def refusing(request: pytest.FixtureRequest) -> Any:
    """A harness on its own database, which the test changes."""
    databases: PostgresqlDatabases | MariadbDatabases | SqliteFiles
    databases = request.getfixturevalue(f"{request.param}_databases")
    url = databases.create()
    harness = Harness(url)
    yield harness
    harness.close()
    if not isinstance(databases, SqliteFiles):
        databases.drop(url)


@pytest.mark.parametrize("name", CASES)
def test_outcome_that_the_database_refuses_is_written_plainer(
    refusing: Harness, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The body has run: its row becomes final, with what the database accepts (faults 7, 26)."""
    case = CASES[name]
    refuse(refusing.url, *case.refused)
    run = refusing.run(refusing.submit())
    with caplog.at_level(logging.WARNING):
        assert case.outcome(run, *case.arguments).write(refusing.store)
    job = refusing.store.queries.job(run.job_id, None)
    assert job is not None
    assert job.status is case.status
    assert job.message.startswith(case.message)
    assert case.logged in caplog.text
    if case.status is JobStatus.REQUEUED:
        assert refusing.message(run.job_id).retry == AGAIN


def test_give_back_with_refused_reason_is_written_plainer(refusing: Harness) -> None:
    refuse(refusing.url, *no("job_event", "message"))
    run = refusing.run(refusing.submit())
    assert GivenBack(run, ODD).write(refusing.store)
    assert refusing.status(run.job_id) is JobStatus.REQUEUED


def test_outcome_refused_in_every_form_says_why(refusing: Harness) -> None:
    refuse(refusing.url, "jobhandle_job", "message", "{} <> ''")
    run = refusing.run(refusing.submit())
    with pytest.raises(Exception, match=r"IntegrityError|CheckViolation|refused"):
        Failed(run, *failure(ODD)).write(refusing.store)
    assert refusing.status(run.job_id) is JobStatus.RUNNING
