"""Submitting canvases, and jobs that wait for others: rows, messages, transactions and errors."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import chain, chord, group, signals
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from jobhandle_celery import Job, JobStatus, UnknownJobError, ValidationError
from jobhandle_celery.broker.messages import MessageBuilder
from jobhandle_celery.broker.plan_canvas import plan
from jobhandle_celery.schema import job


@pytest.fixture
def app(sqlite_url: str, make_jobs_app: Callable[..., Any]) -> Any:
    app = make_jobs_app(sqlite_url)
    app.jobs.upgrade_schema()
    return app


@pytest.fixture
def add(app: Any) -> Any:
    return app.tasks["tests.add"]


def messages(app: Any) -> list[Any]:
    """Take the published messages out of the queue."""
    found = []
    with (
        app.connection_for_read() as connection,
        connection.SimpleQueue(app.conf.task_default_queue) as queue,
    ):
        while queue.qsize():
            message = queue.get(block=False)
            message.ack()
            found.append(message)
    return found


def test_submit_of_chain_returns_id_of_its_root(app: Any, add: Any) -> None:
    handle = app.jobs.handle()
    root_id = handle.submit(chain(add.s(1, 2), add.s(3)))
    root = handle.get_job()
    assert (root.id, root.kind, root.task, root.status) == (
        root_id,
        "chain",
        "celery.chain",
        JobStatus.SUBMITTED,
    )
    first, second = sorted(app.jobs.find(root=root_id), key=lambda record: record.id)
    assert [record.parent_id for record in (first, second)] == [root_id, root_id]
    assert [list(record.args) for record in (first, second)] == [[1, 2], [3]]
    assert second.status is JobStatus.WAITING
    (message,) = messages(app)
    assert message.headers["id"] == first.task_id


def test_submit_many_returns_ids_of_roots_in_order(app: Any, add: Any) -> None:
    needed = Job(task="tests.add", args=[1, 2])
    waits = Job(task="tests.add", args=[5, 6], after=[needed])
    ids = app.jobs.submit_many([waits, group(add.s(1, 2), add.s(3, 4)), needed, add.s(7, 8)])
    records = {record.id: record for record in app.jobs.find()}
    assert [records[job_id].kind for job_id in ids] == [None, "group", None, None]
    assert [list(records[job_id].args) for job_id in ids] == [[5, 6], [], [1, 2], [7, 8]]
    assert records[ids[0]].status is JobStatus.WAITING
    assert len(messages(app)) == 4


def test_messages_of_group_share_group_id(app: Any, add: Any) -> None:
    app.jobs.handle().submit(group(add.s(1, 2), add.s(3, 4)))
    first, second = messages(app)
    assert first.headers["group"] == second.headers["group"] is not None
    assert [message.headers["group_index"] for message in (first, second)] == [0, 1]
    assert first.headers["root_id"] == first.headers["id"]
    assert first.headers["parent_id"] is None


def test_members_of_group_share_a_template(app: Any, add: Any) -> None:
    planned = plan([group(add.s(1, 2), add.s(3, 4))])
    members = app.jobs._runtime.submitter.preparer.members(planned.members, None, None)
    builder = MessageBuilder(app)
    first, second = (builder.build(member.pending_message(7, 6)) for member in members[1:])
    assert first.template is second.template
    assert [message.headers["group_index"] for message in (first, second)] == [0, 1]


def test_message_of_later_member_has_its_place_in_the_canvas(app: Any, add: Any) -> None:
    """The place is in the row, so that any process can publish the message."""
    app.jobs.handle().submit(chain(add.s(1, 2), add.s(3)))
    first, second = (record for record in reversed(app.jobs.find()) if record.kind is None)
    routing = app.jobs._runtime.store.diagnostics.details(second.id).internals.routing
    assert routing["tree"] == {"parent_id": first.task_id, "root_id": first.task_id}


@pytest.fixture
def published() -> Iterator[list[dict[str, Any]]]:
    """Headers that a handler of ``before_task_publish`` sees; it adds one of its own."""
    seen: list[dict[str, Any]] = []

    def handler(headers: dict[str, Any], **_: Any) -> None:
        seen.append(dict(headers))
        headers["tenant"] = "lab"

    signals.before_task_publish.connect(handler)
    yield seen
    signals.before_task_publish.disconnect(handler)


def test_publish_handlers_see_the_place_in_the_canvas(
    app: Any, add: Any, published: list[dict[str, Any]]
) -> None:
    app.jobs.handle().submit(chord([add.s(1, 2), add.s(3, 4)], add.si(5, 6)))
    group_ids = {headers["group"] for headers in published}
    assert len(published) == 3
    assert len(group_ids) == 1
    assert [headers["parent_id"] for headers in published] == [None, None, published[1]["id"]]
    sent = messages(app)
    assert [message.headers["group_index"] for message in sent] == [0, 1]
    assert {message.headers["group"] for message in sent} == group_ids
    assert {message.headers["tenant"] for message in sent} == {"lab"}


def test_publish_handlers_do_not_see_results_that_are_not_there(
    app: Any, add: Any, published: list[dict[str, Any]]
) -> None:
    app.jobs.handle().submit(chain(add.s(1, 2), add.s(3)))
    tasks = [record for record in reversed(app.jobs.find()) if record.kind is None]
    assert [list(record.args) for record in tasks] == [[1, 2], [3]]


def test_result_counts_as_an_argument(app: Any, add: Any) -> None:
    for wrong in (
        chain(add.s(1, 2), add.s(3, 4)),
        chain(add.s(1, 2), add.s()),
        chain(add.s(1, 2), add.si(3)),
    ):
        with pytest.raises(ValidationError, match=r"what tests.add takes .*in chain\[1\], tests.add"):
            app.jobs.handle().submit(wrong)
    assert app.jobs.find() == []


def test_times_of_later_member_count_from_the_end_of_its_needs(app: Any, add: Any) -> None:
    root_id = app.jobs.handle().submit(
        chain(add.s(1, 2).set(countdown=30), add.s(3).set(countdown=40, expires=50))
    )
    first, second = sorted(app.jobs.find(root=root_id), key=lambda record: record.id)
    assert (first.scheduled_for - first.submitted).total_seconds() == pytest.approx(30, abs=1)
    assert (second.scheduled_for, second.expires) == (None, None)
    assert relative_times(app, second.id) == (40, 50)


def relative_times(app: Any, job_id: int) -> tuple[float, float]:
    with app.jobs._runtime.store.database.autocommit() as db:
        row = db.execute(select(job.c.countdown, job.c.expires_in).where(job.c.id == job_id)).one()
    return row.countdown, row.expires_in


def test_times_of_job_with_needs_count_from_the_submit(app: Any) -> None:
    needed = app.jobs.submit(Job(task="tests.add", args=[1, 2]))
    handle = app.jobs.handle()
    handle.submit(Job(task="tests.add", args=[1, 2], after=[needed], scheduled_for=30, expires=60))
    record = handle.get_job()
    assert (record.scheduled_for - record.submitted).total_seconds() == pytest.approx(30, abs=1)
    assert (record.expires - record.submitted).total_seconds() == pytest.approx(60, abs=1)


def test_tree_of_a_rolled_back_transaction_is_gone(app: Any, add: Any, sqlite_url: str) -> None:
    engine = create_engine(sqlite_url)
    with Session(engine) as session:
        handle = app.jobs.handle()
        handle.submit(chain(add.s(1, 2), add.s(3)), session=session)
        session.rollback()
    engine.dispose()
    assert (app.jobs.find(), messages(app)) == ([], [])


def test_tree_of_a_committed_transaction_is_published(app: Any, add: Any, sqlite_url: str) -> None:
    engine = create_engine(sqlite_url)
    with Session(engine) as session:
        root_id = app.jobs.handle().submit(chord([add.s(1, 2), add.s(3, 4)], add.si(5, 6)), session=session)
        assert messages(app) == []
        session.commit()
    engine.dispose()
    assert len(app.jobs.find(root=root_id)) == 4
    assert len(messages(app)) == 2


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (Job(task="tests.add", args=[1, 2], after=[1], when="never"), "when"),
        (Job(task="tests.add", args=[1, 2], after="1"), "after"),  # type: ignore[arg-type]  # the point
        (Job(task="tests.add", args=[1, 2], after=[1], status=JobStatus.WAITING), "status"),
        (Job(task="tests.add", args=[1, 2], after=[Job(task="tests.add")]), "after"),
    ],
)
def test_wrong_need_is_refused(app: Any, given: Job, field: str) -> None:
    needed = app.jobs.submit(Job(task="tests.add", args=[1, 2]))
    with pytest.raises(ValidationError) as caught:
        app.jobs.submit(given)
    assert caught.value.field == field
    assert [record.id for record in app.jobs.find()] == [needed]


def test_need_on_unknown_job_is_refused(app: Any) -> None:
    for unknown in (99, -1, 2**70):
        with pytest.raises(UnknownJobError):
            app.jobs.submit(Job(task="tests.add", args=[1, 2], after=[unknown]))
    assert app.jobs.find() == []


def test_record_as_a_need_is_the_stored_job(app: Any) -> None:
    handle = app.jobs.handle()
    handle.submit(Job(task="tests.add", args=[1, 2]))
    waits = app.jobs.submit(Job(task="tests.add", args=[1, 2], after=[handle.get_job()]))
    assert app.jobs.attach(waits).job_status() is JobStatus.WAITING
