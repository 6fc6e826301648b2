"""What handles and lists say of trees: results, progress, members, events and filters."""

from dataclasses import replace
from typing import Any

import pytest
from celery import chain as chain_of

from jobhandle_celery import (
    ApiUsageError,
    Event,
    JobFailedError,
    JobHandleError,
    JobRecord,
    JobStatus,
    Progress,
    UnknownJobError,
    ValidationError,
)
from jobhandle_celery.schema import clock, job_event
from jobhandle_celery.store import snapshots, tree_results
from tests.job_factory import ADD, JobFactory
from tests.tree_rows import Node, chain, chord, group, insert_tree, leaf

RUNNING, ERROR, WAITING = JobStatus.RUNNING, JobStatus.ERROR, JobStatus.WAITING


def insert(factory: JobFactory, root: Node, **columns: Any) -> int:
    with factory.engine.begin() as connection:
        return insert_tree(connection, root, **columns)


def half_run() -> Node:
    """A chain of a task and a chord, of whose three header tasks two have Finished."""
    header = group(leaf(1), chain(leaf(2), leaf(status=RUNNING), status=RUNNING), status=RUNNING)
    tail = chord(header, leaf(status=WAITING, columns={"blocked": True}), status=RUNNING)
    return chain(leaf(0), tail, status=RUNNING)


def ids(jobs: list[JobRecord]) -> list[int]:
    return [job.id for job in jobs]


def test_result_of_node_is_read_from_its_members(factory: JobFactory) -> None:
    root = chord(group(leaf(1), leaf(2)), leaf(3))
    handle = factory.jobs.attach(insert(factory, root))
    assert handle.result() == handle.get_job().result == 3
    header = factory.jobs.attach(root.children[0].id)
    assert header.result() == header.get_job().result == [1, 2]
    assert factory.jobs.find(ids=[root.id])[0].result is None


def test_node_that_has_not_finished_has_no_result(factory: JobFactory) -> None:
    root = group(leaf(1), leaf(2, status=ERROR), status=ERROR)
    handle = factory.jobs.attach(insert(factory, root))
    assert handle.get_job().result is None
    with pytest.raises(JobFailedError):
        handle.result()


def test_unreadable_result_of_a_member_is_named(factory: JobFactory) -> None:
    root = group(leaf(1, columns={"result": "no JSON"}), leaf(2))
    handle = factory.jobs.attach(insert(factory, root))
    assert type(handle.get_job().result).__name__ == "Unreadable"
    with pytest.raises(JobHandleError, match="cannot be read"):
        handle.result()


def test_node_that_is_pruned_during_a_read_is_unknown(
    factory: JobFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its members go with it: a result that is read then may lack some of them."""
    handle = factory.jobs.attach(insert(factory, group(leaf(1))))
    read = tree_results.results_of

    def prune_first(*given: Any) -> dict[int, str]:
        with factory.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM jobhandle_job WHERE parent_id IS NOT NULL")
            connection.exec_driver_sql("DELETE FROM jobhandle_job")
        return read(*given)

    monkeypatch.setattr(snapshots, "results_of", prune_first)
    with pytest.raises(UnknownJobError):
        handle.get_job()


def test_progress_counts_the_tasks_below_a_node(factory: JobFactory) -> None:
    root = half_run()
    insert(factory, root)
    counted = {node.id: factory.jobs.attach(node.id).get_job().progress for node in root if node.kind}
    chord_node = root.children[1]
    header = chord_node.children[0]
    assert counted == {
        root.id: Progress(3, 5),
        chord_node.id: Progress(2, 4),
        header.id: Progress(2, 3),
        header.children[1].id: Progress(1, 2),
    }
    listed = {job.id: job.progress for job in factory.jobs.find() if job.kind}
    assert listed == counted


def test_list_counts_no_members_of_nodes_that_have_ended(factory: JobFactory) -> None:
    """Else the cost of a list would grow with the number of finished jobs."""
    root = group(leaf(1), leaf(2, status=ERROR), status=ERROR)
    insert(factory, root)
    assert factory.jobs.attach(root.id).get_job().progress == Progress(1, 2)
    assert [job.progress for job in factory.jobs.find(ids=[root.id])] == [None]


def test_empty_group_has_no_progress_and_an_empty_result(factory: JobFactory) -> None:
    job = factory.jobs.attach(insert(factory, group())).get_job()
    assert (job.progress, job.result) == (None, [])


def test_members_are_in_the_order_of_the_tree(factory: JobFactory) -> None:
    root = half_run()
    root.children.insert(0, leaf(9, callback=True))
    insert(factory, root)
    callback, *others = list(root)[1:]
    expected = [*(node.id for node in others), callback.id]
    assert ids(factory.jobs.attach(root.id).members()) == expected
    header = root.children[2].children[0]
    assert ids(factory.jobs.attach(header.id).members()) == [node.id for node in header][1:]
    assert factory.jobs.attach(callback.id).members() == []


def test_member_names_its_place_and_a_root_none(factory: JobFactory) -> None:
    root = half_run()
    insert(factory, root)
    job = factory.jobs.attach(root.id).get_job()
    assert (job.kind, job.root_id, job.parent_id) == ("chain", None, None)
    for member in factory.jobs.attach(root.id).members():
        assert member.root_id == root.id
    first, nested, *_ = factory.jobs.attach(root.id).members()
    assert (first.kind, first.parent_id, nested.kind, nested.parent_id) == (None, root.id, "chord", root.id)


def test_blocked_member_is_not_held(factory: JobFactory) -> None:
    root = half_run()
    insert(factory, root)
    body = factory.jobs.attach(root.children[1].children[1].id).get_job()
    assert (body.status, body.blocked, body.held) == (WAITING, True, False)


def test_root_filter_means_the_same_to_find_count_and_cancel(factory: JobFactory) -> None:
    root, other = half_run(), group(leaf(1), leaf(status=RUNNING), status=RUNNING)
    insert(factory, root)
    insert(factory, other)
    alone = factory.jobs.submit(ADD)
    members = sorted([node.id for node in root][1:], reverse=True)
    assert ids(factory.jobs.find(root=root.id)) == members
    assert ids(factory.jobs.find(root=root.id, limit=2, before=members[0])) == members[1:3]
    assert ids(factory.jobs.find(root=other.id, status="Running")) == [other.children[1].id]
    assert factory.jobs.find(root=alone) == factory.jobs.find(root=2**70) == []
    assert sum(factory.jobs.count_by_status(root=root.id).values()) == len(members)
    assert factory.jobs.count_by_status(root=other.id)[JobStatus.FINISHED] == 1
    assert factory.jobs.cancel_many(root=other.id) == 1
    assert [job.cancel_requested is not None for job in factory.jobs.find(root=other.id)] == [True, False]
    assert factory.jobs.attach(alone).job_status() is JobStatus.QUEUED
    for operation in (factory.jobs.find, factory.jobs.count_by_status, factory.jobs.cancel_many):
        with pytest.raises(ApiUsageError, match=r"^root: "):
            operation(root="42")


def test_tree_of_another_user_is_unknown(factory: JobFactory) -> None:
    root = half_run()
    insert(factory, root, username="ann")
    for node in root:
        with pytest.raises(UnknownJobError, match=f"no job {node.id}"):
            factory.jobs.attach(node.id, username="bob")
        assert factory.jobs.events(node.id, username="bob") == []
    assert factory.jobs.find(root=root.id, username="bob") == []
    handle = factory.jobs.attach(root.id, username="ann")
    assert len(handle.members()) == len(list(root)) - 1
    handle._username = "bob"  # as of a handle whose job was given to another user
    with pytest.raises(UnknownJobError):
        handle.members()


def add_event(factory: JobFactory, root: Node, status: JobStatus) -> None:
    with factory.engine.begin() as connection:
        values = {"job_id": root.id, "attempt": 0, "status_id": status, "message": "", "actor": "service"}
        connection.execute(job_event.insert().values(at=clock(), **values))


def test_events_of_an_unfinished_node_end_with_a_computed_one(factory: JobFactory) -> None:
    root = half_run()
    insert(factory, root)
    for status in (JobStatus.SUBMITTED, RUNNING):
        add_event(factory, root, status)
    submitted, running, counted = factory.jobs.attach(root.id).events()
    assert [submitted.computed, running.computed] == [False, False]
    assert counted == Event(counted.at, RUNNING, 0, "3 of 5 finished", "", computed=True)
    assert counted.at >= running.at


def test_events_of_an_ended_node_and_of_a_task_are_stored_ones(factory: JobFactory) -> None:
    root = group(leaf(1))
    insert(factory, root)
    add_event(factory, root, JobStatus.FINISHED)
    add_event(factory, root.children[0], JobStatus.FINISHED)
    for node in root:
        (event,) = factory.jobs.attach(node.id).events()
        assert not event.computed


def test_record_has_the_needs_of_its_job(factory: JobFactory) -> None:
    first, second = factory.jobs.submit_many([ADD, ADD])
    (waiting,) = factory.jobs.submit_many([replace(ADD, after=[second, first], when="ended")])
    alone = factory.jobs.attach(first).get_job()
    record = factory.jobs.attach(waiting).get_job()
    assert ((alone.after, alone.when), (record.after, record.when)) == (
        ((), "finished"),
        ((first, second), "ended"),
    )
    assert [job.after for job in factory.jobs.find(ids=[waiting, first])] == [(first, second), ()]
    again = factory.jobs.attach(factory.jobs.submit(record)).get_job()
    assert (again.after, again.when, again.blocked) == ((first, second), "ended", True)


def test_record_of_a_member_makes_a_job_without_its_needs(factory: JobFactory) -> None:
    add = factory.app.tasks["tests.add"]
    root = factory.jobs.submit(chain_of(add.s(1, 2), add.s(3), add.si(4, 5)))
    first, second, third = factory.jobs.attach(root).members()
    assert (first.after, second.after, third.after) == ((), (first.id,), (second.id,))
    assert (first.blocked, third.blocked) == (False, True)
    again = factory.jobs.attach(factory.jobs.submit(third)).get_job()
    assert (again.after, again.blocked, again.parent_id, again.args) == ((), False, None, [4, 5])
    with pytest.raises(ValidationError, match="missing 1 required"):  # the result of the first
        factory.jobs.submit(second)


def test_record_of_a_node_is_not_submitted_again(factory: JobFactory) -> None:
    record = factory.jobs.attach(insert(factory, group(leaf(1)))).get_job()
    with pytest.raises(ValidationError, match=r"^kind: .*resubmit_job"):
        factory.jobs.submit(record)


def test_node_of_unknown_job_has_no_members(factory: JobFactory) -> None:
    handle = factory.jobs.attach(insert(factory, group(leaf(1))))
    with factory.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM jobhandle_job")
    for operation in (handle.members, handle.get_job, handle.job_message, handle.events):
        with pytest.raises(UnknownJobError):
            operation()
