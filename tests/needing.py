"""Jobs that need others, which are inserted as rows, and their tasks."""

from collections.abc import Callable
from typing import Any

from jobhandle_celery import Job, JobHandle, JobStatus
from jobhandle_celery.runtime import runtime_of
from tests.tree_rows import Node, insert_needs, insert_tree


def store_tree(app: Any, root: Node) -> int:
    with runtime_of(app).store.database.transaction() as db:
        return insert_tree(db.connection, root)


def submit(app: Any, asked: Job, *needed: Any, when: str = "finished") -> JobHandle:
    """Submit a job that needs these, see `insert_needs`."""
    handle: JobHandle = app.jobs.handle()
    handle.submit(Job(**{**vars(asked), "status": JobStatus.WAITING}))
    with runtime_of(app).store.database.transaction() as db:
        insert_needs(db.connection, handle.job_id, *needed, when=when)
    handle.release_job()
    return handle


def task(app: Any, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    decorate: Callable[[Callable[..., Any]], Any] = app.task(shared=False, **options)
    return decorate


def taking(app: Any) -> str:
    """Define a task that returns all its arguments."""

    @task(app, name="tests.taking")
    def take(*args: Any, **kwargs: Any) -> Any:
        return [list(args), kwargs]

    return "tests.taking"
