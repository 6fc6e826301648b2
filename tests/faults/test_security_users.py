"""Other users' jobs do not exist for a user; and text arguments are never SQL."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy

from jobhandle_celery import Job, JobHandle, JobStatus, UnknownJobError
from tests.faults.fuzz_values import INJECTIONS
from tests.handle_operations import OPERATIONS

pytestmark = pytest.mark.faults

FURTHER: dict[str, Callable[[JobHandle], object]] = {
    "terminate": lambda handle: handle.cancel_job(terminate=True),
    **{
        f"set {status}": lambda handle, status=status: handle.set_status(status)  # type: ignore[misc]  # bound
        for status in ("Finished", "Error", "Cancelled")
    },
}


@pytest.fixture
def app(database_url: str, make_jobs_app: Callable[..., Any]) -> Any:
    return make_jobs_app(database_url)


def jobs_of_ann(app: Any) -> list[int]:
    """One job in each state that a handle can bring it to."""
    handle = app.jobs.handle(username="ann")
    job = Job(task="tests.add", args=[1, 2], message="ann's own")
    moves: list[list[str]] = [[], ["Running"], ["Running", "Finished"], ["Running", "Error"], ["Cancelled"]]
    ids = []
    for move in moves:
        ids.append(handle.submit(job))
        for status in move:
            handle.set_status(status)
    ids.append(handle.submit(Job(task="tests.add", args=[1, 2], status=JobStatus.WAITING)))
    ids.append(handle.submit(Job(task="tests.add", args=[1, 2], scheduled_for=timedelta(hours=1))))
    return ids


def everything(app: Any) -> Any:
    jobs = app.jobs.find(limit=1000)
    return jobs, [app.jobs.events(job.id) for job in jobs]


def answer(call: Callable[[], object]) -> str:
    with pytest.raises(UnknownJobError) as caught:
        call()
    assert caught.value.__cause__ is None
    return f"{type(caught.value).__name__}: {caught.value}"


@pytest.mark.parametrize("username", ["bob", "Ann", "ann ", "%", "_nn", "a%", "ann' --"])
def test_job_of_another_user_is_an_unknown_job(app: Any, username: str) -> None:
    ids = jobs_of_ann(app)
    missing = max(ids) + 1000
    before = everything(app)
    for name, operation in (OPERATIONS | FURTHER).items():
        if name in ("job_id", "set_status, not settable"):
            continue  # they do not read the row
        answers = set()
        for job_id in [*ids, missing]:
            handle = app.jobs.handle(username=username)
            guess = answer(lambda job_id=job_id, handle=handle: handle.attach(job_id))  # type: ignore[misc]  # bound
            # Not reachable by public calls: as if the id was guessed, or the row was pruned since.
            handle._job_id = job_id
            result = answer(lambda handle=handle, operation=operation: operation(handle))  # type: ignore[misc]  # bound
            answers |= {result.replace(str(job_id), "N"), guess.replace(str(job_id), "N")}
        assert len(answers) == 1, f"{name} tells them apart: {answers}"
    assert everything(app) == before


def test_mass_cancel_and_a_list_keep_to_their_user(app: Any) -> None:
    ids = jobs_of_ann(app)
    before = everything(app)
    for username in ("bob", "Ann", "%", "ann' OR '1'='1"):
        assert app.jobs.find(username=username, ids=ids) == []
        assert app.jobs.cancel_many(username=username, ids=ids) == 0
        assert app.jobs.cancel_many(username=username, status=list(JobStatus)) == 0
    assert everything(app) == before


@pytest.mark.parametrize("text", INJECTIONS)
def test_text_is_never_sql(app: Any, database_url: str, text: str) -> None:
    jobs = app.jobs
    bystander = jobs.handle(username="bystander").submit(Job(task="tests.add", args=[1, 2]))
    before = jobs.handle()
    before.attach(bystander)
    untouched = before.get_job()
    job = Job(
        task=text,
        args=[text, {text: text}],
        kwargs={text: text},
        message=text,
        unique_key=text,
        meta={text: [text]},
    )

    handle = jobs.handle(username=text, groupname=text)
    job_id = handle.submit(job)
    assert handle.submit(job) == job_id
    kept = handle.get_job()
    assert (kept.task, kept.message, kept.unique_key, kept.username, kept.groupname) == (text,) * 5
    assert (kept.args, kept.kwargs, kept.meta) == (job.args, job.kwargs, job.meta)
    assert handle.set_message(text + text) == text
    assert handle.job_message() == text + text
    assert [found.id for found in jobs.find(task=text, username=text)] == [job_id]
    assert handle.set_status_and_message("Running", text) is kept.status
    assert handle.set_status("Finished") is JobStatus.RUNNING
    handle.resubmit_job()
    assert jobs.cancel_many(task=text, username=text) == 1
    assert len(jobs.events(job_id)) >= 4
    assert before.get_job() == untouched
    engine = sqlalchemy.create_engine(database_url)
    assert len([name for name in sqlalchemy.inspect(engine).get_table_names() if "jobhandle" in name]) >= 5
    engine.dispose()


@pytest.mark.parametrize("text", INJECTIONS)
def test_namespace_is_never_sql(sqlite_url: str, make_jobs_app: Callable[..., Any], text: str) -> None:
    jobs = make_jobs_app(sqlite_url, jobhandle_namespace=text).jobs
    job_id = jobs.submit(Job(task="tests.add", args=[1, 2]))
    assert [job.id for job in jobs.find()] == [job_id]
    jobs.sweep()
    assert make_jobs_app(sqlite_url).jobs.find() == []
