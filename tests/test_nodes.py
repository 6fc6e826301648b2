"""The nodes above a member become Running when a worker starts it, and it is settled when it ends."""

import uuid
from collections.abc import Iterator
from typing import Any

import celery
import pytest
from sqlalchemy import update

from jobhandle_celery import Job, JobHandle, JobStatus, current_job
from jobhandle_celery.errors import DatabaseUnavailableError
from jobhandle_celery.runtime import runtime_of
from jobhandle_celery.schema import job
from jobhandle_celery.store.nodes import CROWD
from jobhandle_celery.worker import tree_member
from tests.apps import make_app
from tests.in_process import become_worker, message_of, run
from tests.tree_rows import Node, chain, group, insert_tree
from tests.unsettled import leave_unsettled, unsettled

SUBMITTED = JobStatus.SUBMITTED


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Any]:
    app: Any = make_app("memory://", sqlite_url, {"task_default_queue": f"queue-{uuid.uuid4().hex}"})

    def seeing() -> list[str]:
        """Return the statuses of the nodes above."""
        body = current_job()
        assert body is not None
        found, above = body.get_job(), []
        while found.parent_id is not None:
            found = app.jobs.attach(found.parent_id).get_job()
            above.append(str(found.status))
        return above

    app.task(name="tests.seeing", shared=False)(seeing)
    become_worker(app)
    yield app
    app.jobs.close()


@pytest.fixture
def calls(app: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The jobs for which the statement is executed."""
    settling, calls = runtime_of(app).store.settling, list[int]()
    start = settling.start_ancestors

    def noting(job_id: int, actor: str) -> None:
        calls.append(job_id)
        start(job_id, actor)

    monkeypatch.setattr(settling, "start_ancestors", noting)
    return calls


def store_nodes(app: Any, root: Node) -> Node:
    with runtime_of(app).store.database.transaction() as db:
        insert_tree(db.connection, root)
    return root


def submit_below(app: Any, node: Node, root: Node) -> JobHandle:
    """Submit a member of a node."""
    handle: JobHandle = app.jobs.handle()
    handle.submit(Job(task="tests.seeing", status=JobStatus.WAITING))
    change(app, handle.job_id, parent_id=node.id, root_id=root.id, position=0)
    handle.release_job()
    return handle


def change(app: Any, job_id: int, **columns: Any) -> None:
    with runtime_of(app).store.database.transaction() as db:
        db.connection.execute(update(job).where(job.c.id == job_id).values(**columns))


def test_all_nodes_above_are_running_before_the_body(app: Any) -> None:
    root = store_nodes(app, group(inner := chain(status=SUBMITTED), status=SUBMITTED))
    handle = submit_below(app, inner, root)
    run(app, message_of(app))
    assert handle.result(timeout=0) == ["Running", "Running"]
    for node in (inner, root):
        event = app.jobs.events(node.id)[0]
        assert (event.status, event.actor) == (JobStatus.RUNNING, "worker w1")


def test_process_starts_a_node_once(app: Any, calls: list[int]) -> None:
    first, second = (store_nodes(app, group(status=SUBMITTED)) for _ in range(2))
    handles = [submit_below(app, node, node) for node in (first, first, second)]
    for _ in handles:
        run(app, message_of(app))
    assert calls == [handles[0].job_id, handles[2].job_id]
    assert [handle.result(timeout=0) for handle in handles] == [["Running"]] * 3


def test_forgotten_nodes_are_started_again(
    app: Any, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_member, "MAX_REMEMBERED", 1)
    roots = [store_nodes(app, group(status=SUBMITTED)) for _ in range(2)]
    for node in (*roots, roots[0]):
        submit_below(app, node, node)
        run(app, message_of(app))
    assert len(calls) == 3
    assert len(runtime_of(app).started_nodes) == 1


@pytest.mark.parametrize(
    "row",
    [
        {"status_id": JobStatus.RESUBMITTED},
        {"publish_count": 1},
        {"attempt": 1},
    ],
    ids=["resubmitted", "republished", "run before"],
)
def test_message_that_may_be_of_another_round_starts_the_node(app: Any, row: dict[str, Any]) -> None:
    """A process remembers nodes by their ids, and a resubmitted root is Resubmitted anew."""
    root = store_nodes(app, group(status=SUBMITTED))
    submit_below(app, root, root)
    run(app, message_of(app))
    change(app, root.id, status_id=JobStatus.RESUBMITTED)
    handle = app.jobs.handle()
    handle.submit(Job(task="tests.seeing", status=JobStatus.WAITING))
    change(app, handle.job_id, **{"parent_id": root.id, "root_id": root.id, "status_id": SUBMITTED, **row})
    runtime_of(app).submitter.send([handle.job_id])
    run(app, message_of(app))
    assert handle.result(timeout=0) == ["Running"]


def test_outage_does_not_keep_the_member_from_running(
    app: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The settle of the member repeats it; this process tries again with the next one."""

    def away(job_id: int, actor: str) -> None:
        raise DatabaseUnavailableError("away")

    root = store_nodes(app, group(status=SUBMITTED))
    first, second = submit_below(app, root, root), submit_below(app, root, root)
    monkeypatch.setattr(runtime_of(app).store.settling, "start_ancestors", away)
    run(app, message_of(app))
    assert first.result(timeout=0) == ["Submitted"]
    assert "is not shown as Running yet: away" in caplog.text
    monkeypatch.undo()
    run(app, message_of(app))
    assert second.result(timeout=0) == ["Running"]


def test_job_without_tree_executes_no_statement_more(app: Any, calls: list[int]) -> None:
    app.jobs.submit(Job(task="tests.seeing"))
    run(app, message_of(app))
    assert calls == []


def test_members_of_a_large_group_are_settled_with_a_later_one(
    app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one's settle has read how many siblings it has."""
    leave_unsettled(monkeypatch)
    runtime = runtime_of(app)
    member = app.signature("tests.seeing", immutable=True)
    with app.jobs.handle() as handle:
        handle.submit(celery.group(member.clone() for _ in range(CROWD + 4)))

    for _ in range(3):
        run(app, message_of(app))
    assert len(unsettled(runtime.store.database)) == 2
    runtime.settler.drain()
    assert unsettled(runtime.store.database) == []
