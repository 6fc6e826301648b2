"""Other users' jobs do not exist for a user; and text arguments are never SQL."""

import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy

from jobhandle_celery import Job, JobHandle, JobStatus, UnknownJobError
from tests.apps import make_app
from tests.faults.fuzz_values import INJECTIONS

pytestmark = pytest.mark.faults

OPERATIONS: dict[str, Callable[[JobHandle], object]] = {
    "get_job": lambda handle: handle.get_job(),
    "job_status": lambda handle: handle.job_status(),
    "job_finished": lambda handle: handle.job_finished(),
    "job_message": lambda handle: handle.job_message(),
    "job_running": lambda handle: handle.job_running(),
    "job_error": lambda handle: handle.job_error(),
    "cancel_job": lambda handle: handle.cancel_job(),
    "terminate": lambda handle: handle.cancel_job(terminate=True),
    "set Running": lambda handle: handle.set_status("Running"),
    "set Finished": lambda handle: handle.set_status("Finished"),
    "set Error": lambda handle: handle.set_status("Error"),
    "set Cancelled": lambda handle: handle.set_status("Cancelled"),
    "set_message": lambda handle: handle.set_message("mine"),
    "look at the message": lambda handle: handle.set_message(None),
    "set both": lambda handle: handle.set_status_and_message("Running", "mine"),
    "set_progress": lambda handle: handle.set_progress(1, 2),
    "wait": lambda handle: handle.wait(0),
    "result": lambda handle: handle.result(0),
    "cancel_requested": lambda handle: handle.cancel_requested(),
    "raise_if_cancelled": lambda handle: handle.raise_if_cancelled(),
    "resubmit_job": lambda handle: handle.resubmit_job(),
    "release_job": lambda handle: handle.release_job(),
}


@pytest.fixture
def app(database_url: str) -> Iterator[Any]:
    app: Any = make_app("memory://", database_url, {"task_default_queue": f"queue-{uuid.uuid4().hex}"})
    yield app
    app.jobs.close()


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
    for name, operation in OPERATIONS.items():
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


def test_unique_key_of_one_user_is_unknown_to_another(app: Any) -> None:
    job = Job(task="tests.add", args=[1, 2], unique_key="secret project")
    first = app.jobs.handle(username="ann").submit(job)
    assert app.jobs.handle(username="bob").submit(job) != first
    assert app.jobs.handle(username="ann").submit(job) == first


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
def test_namespace_is_never_sql(sqlite_url: str, text: str) -> None:
    app: Any = make_app("memory://", sqlite_url, {"jobhandle_namespace": text})
    handle = app.jobs.handle()
    job_id = handle.submit(Job(task="tests.add", args=[1, 2], queue=f"q-{uuid.uuid4().hex}"))
    assert [job.id for job in app.jobs.find()] == [job_id]
    app.jobs.sweep()
    app.jobs.close()
    elsewhere: Any = make_app("memory://", sqlite_url, {})
    assert elsewhere.jobs.find() == []
    elsewhere.jobs.close()
