"""The commands on chains, groups and chords: the tree of `show`, folded lists, results in words, `doctor`."""

from datetime import timedelta
from typing import Any

import pytest

from jobhandle_celery import JobHandle, JobStatus, schema
from jobhandle_celery.cli import tree as cli_tree
from jobhandle_celery.cli.context import CommandContext
from tests.cli.findings import line, stuck_jobs
from tests.cli.runner import run_command
from tests.job_factory import ADD, JobFactory, update_column
from tests.tree_rows import TASK, Node, chain, chord, group, insert_tree, leaf

RUNNING, ERROR, WAITING, QUEUED = JobStatus.RUNNING, JobStatus.ERROR, JobStatus.WAITING, JobStatus.QUEUED
BLOCKED = {"blocked": True, "needs_when": "finished"}


def insert(factory: JobFactory, root: Node, **columns: Any) -> Node:
    with factory.engine.begin() as connection:
        insert_tree(connection, root, **columns)
    return root


def need(factory: JobFactory, node: Node, *needed: Node | int) -> None:
    ids = [item if isinstance(item, int) else item.id for item in needed]
    with factory.engine.begin() as connection:
        rows = [{"job_id": node.id, "needs_id": needs_id} for needs_id in ids]
        connection.execute(schema.job_need.insert(), rows)


def half_run(factory: JobFactory) -> Node:
    """A chord of three tasks, of which one has Finished, and a body that waits for them."""
    header = group(leaf(1), leaf(status=ERROR), leaf(status=QUEUED), status=RUNNING)
    root = insert(factory, chord(header, leaf(status=WAITING, columns=BLOCKED), status=RUNNING))
    need(factory, root.children[1], header)
    return root


# show


def test_show_of_a_node_prints_its_tree(sqlite_factory: JobFactory) -> None:
    root = half_run(sqlite_factory)
    _, header, first, second, third, body = [node.id for node in root]
    out = run_command(sqlite_factory.app, "show", root.id).out
    tree = next(block for block in out.split("\n\n") if block.startswith("ID "))
    assert [" ".join(row.split()) for row in tree.splitlines()] == [
        "ID STATUS PROGRESS TASK",
        f"{root.id} Running 1/4 celery.chord",
        f"{header} Running 1/3 · celery.group",
        f"{first} Finished - · · {TASK}",
        f"{second} Error - · · {TASK}",
        f"{third} Queued - · · {TASK}",
        f"{body} Waiting - · {TASK}",
    ]
    assert "why        1 of 4 members finished" in out
    shown = run_command(sqlite_factory.app, "show", body).out
    assert f"waits for job {header} (Running)" in shown
    assert "ID  STATUS" not in shown
    document = run_command(sqlite_factory.app, "show", body, "--json").document
    assert (document["root_id"], document["parent_id"], document["blocked"]) == (root.id, root.id, True)
    assert document["needs"] == [{"id": header, "status": "Running"}]
    assert document["tree"] is None


def test_show_of_a_nested_node_prints_what_is_below_it(sqlite_factory: JobFactory) -> None:
    header = half_run(sqlite_factory).children[0]
    tree = run_command(sqlite_factory.app, "show", header.id, "--json").document["tree"]
    assert (tree["id"], tree["kind"], tree["progress"]) == (header.id, "group", {"current": 1, "total": 3})
    assert [child["id"] for child in tree["children"]] == [child.id for child in header.children]
    assert [child["position"] for child in tree["children"]] == [0, 1, 2]


def test_show_folds_a_large_group_and_keeps_what_failed(
    sqlite_factory: JobFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_tree, "CHILDREN_SHOWN", 3)
    leaves = [leaf(number) for number in range(1_000)]
    for number, status in ((500, ERROR), (700, RUNNING), (800, QUEUED), (900, QUEUED)):
        leaves[number] = leaf(status=status)
    root = insert(sqlite_factory, group(*leaves, status=RUNNING))
    shown = [leaves[number].id for number in (500, 700, 800)]
    tree = run_command(sqlite_factory.app, "show", root.id, "--json").document["tree"]
    assert [child["id"] for child in tree["children"]] == shown
    assert tree["folded"] == {"Finished": 996, "Queued": 1}
    out = run_command(sqlite_factory.app, "show", root.id).out
    assert "· … 997 more, 996 Finished, 1 Queued" in out
    full = run_command(sqlite_factory.app, "show", root.id, "--json", "--full").document["tree"]
    assert ([child["id"] for child in full["children"]], full["folded"]) == ([job.id for job in leaves], {})


def test_show_of_a_finished_node_has_its_result(sqlite_factory: JobFactory) -> None:
    root = insert(sqlite_factory, group(leaf(1), leaf("two"), leaf(0, callback=True)))
    document = run_command(sqlite_factory.app, "show", root.id, "--json").document
    assert (document["result"], document["progress"]) == ([1, "two"], {"current": 3, "total": 3})
    assert f"· {TASK} (callback)" in run_command(sqlite_factory.app, "show", root.id).out


# list


def test_list_folds_trees_to_their_roots(factory: JobFactory) -> None:
    root = half_run(factory)
    alone = factory.jobs.submit(ADD)
    ended = insert(factory, group(leaf(1), leaf(2)))
    documents = run_command(factory.app, "list", "--json").documents
    assert [document["id"] for document in documents] == [ended.id, alone, root.id]
    assert [document["progress"] for document in documents] == [
        {"current": 2, "total": 2},
        None,
        {"current": 1, "total": 4},
    ]

    def listed(*arguments: object) -> list[int]:
        return [int(job_id) for job_id in run_command(factory.app, "list", "--ids", *arguments).out.split()]

    members = [node.id for node in root][1:]
    assert listed("--root", root.id) == sorted(members, reverse=True)
    assert listed("--root", root.id, "--status", "Error") == [root.children[0].children[1].id]
    assert len(listed("--members")) == 1 + len(list(root)) + len(list(ended))
    assert listed("--status", "Finished") == [ended.id]
    assert listed("--task", TASK) == listed("--task", TASK, "--user", "ann") == []
    assert listed("--limit", 1) == [ended.id]
    assert listed("--limit", 1, "--before", ended.id) == [alone]


def test_watch_of_an_ended_node_has_its_progress(sqlite_factory: JobFactory) -> None:
    root = insert(sqlite_factory, group(leaf(1), leaf(2)))
    (document,) = run_command(sqlite_factory.app, "watch", root.id, "--json").documents
    assert (document["status"], document["progress"]) == ("Finished", {"current": 2, "total": 2})


def test_wait_for_a_node_says_how_it_ended(sqlite_factory: JobFactory) -> None:
    failed = {"message": "job 2 (shop.thumbnail) ended in Error: no good"}
    root = insert(sqlite_factory, group(leaf(status=ERROR), status=ERROR, columns=failed))
    result = run_command(sqlite_factory.app, "wait", root.id)
    assert (result.code, result.out) == (1, f"job {root.id} is Error: {failed['message']}\n")


# What changes jobs.


def test_cancel_of_a_node_says_what_becomes_of_its_members(sqlite_factory: JobFactory) -> None:
    root = insert(sqlite_factory, group(leaf(status=QUEUED), status=JobStatus.SUBMITTED))
    result = run_command(sqlite_factory.app, "cancel", root.id)
    assert (result.code, result.out) == (0, f"job {root.id} is Cancelled: no member will start\n")


def test_resubmit_and_release_by_filters_leave_members_to_their_roots(
    sqlite_factory: JobFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = insert(sqlite_factory, group(leaf(status=ERROR), status=ERROR))
    alone = sqlite_factory.job_in(ERROR).job_id
    other = half_run(sqlite_factory)
    blocked = insert(sqlite_factory, leaf(status=WAITING, columns=BLOCKED))
    held = sqlite_factory.job_in(WAITING).job_id
    asked: list[Any] = []
    monkeypatch.setattr(CommandContext, "confirm", lambda _, question, __: asked.append(question))
    for operation in ("resubmit_job", "release_job"):
        monkeypatch.setattr(JobHandle, operation, lambda handle: asked.append(handle.job_id))
    run_command(sqlite_factory.app, "resubmit", "--status", "Error")
    run_command(sqlite_factory.app, "release", "--since", "1h")
    run_command(sqlite_factory.app, "resubmit", "--root", root.id)
    assert asked == [
        "Resubmit 2 jobs (status Error)?",
        *(root.id, alone),
        "Release 1 jobs (status Waiting; submitted since 1h ago)?",
        held,
        f"Resubmit 1 jobs (status Error; member of {root.id})?",
        root.children[0].id,
    ]
    assert {other.id, blocked.id}.isdisjoint(asked)


# stats, held jobs, replay


def test_nodes_are_not_counted_as_tasks(factory: JobFactory) -> None:
    root = half_run(factory)
    submitted = group(group(status=JobStatus.FINISHED), status=JobStatus.SUBMITTED)
    insert(factory, submitted)
    for node in (*root, *submitted):
        _add_event(factory, node)
    document = run_command(factory.app, "stats", "--json").document
    assert (document["unfinished"], [task["task"] for task in document["tasks"]]) == (2, [TASK])
    assert document["tasks"][0]["submitted"] == 4
    assert document["tasks"][0]["ended"] == {"Finished": 1, "Error": 1}
    everything = run_command(factory.app, "stats", "--all", "--json").document
    assert [task["task"] for task in everything["tasks"]] == [TASK]
    assert factory.store.stats.count_startable("task") == {TASK: 2}
    assert factory.store.stats.running(10) == []
    assert root.id not in factory.store.diagnostics.touched_within(timedelta(hours=1), 10)
    assert line(factory.app, "held jobs") == "OK no job is held"


def _add_event(factory: JobFactory, node: Node) -> None:
    values = {"job_id": node.id, "attempt": 0, "status_id": node.status, "message": "", "actor": "service"}
    with factory.engine.begin() as connection:
        connection.execute(schema.job_event.insert().values(at=schema.clock(), **values))


# doctor


def test_doctor_finds_nothing_in_trees_that_go_on(factory: JobFactory) -> None:
    half_run(factory)
    insert(factory, group(leaf(1), leaf(2)))
    to_settle = {"unsettled": True, "due_at": schema.clock(5)}
    insert(factory, group(leaf(status=JobStatus.CANCELLED, columns=to_settle), status=RUNNING))
    long_ago = factory.store.stats.now() - timedelta(days=2)
    update_column(factory, schema.job.c.started, long_ago, schema.job.c.kind.is_not(None))
    update_column(factory, schema.job.c.cancel_requested, long_ago, schema.job.c.kind.is_not(None))
    assert line(factory.app, "stuck jobs") == "OK no job is stuck"


def test_doctor_names_trees_that_cannot_go_on(factory: JobFactory) -> None:
    late = factory.store.stats.now() - timedelta(hours=1)
    unsettled = leaf(1, columns={"unsettled": True, "due_at": late})
    insert(factory, group(unsettled, status=RUNNING))
    stranded = leaf(status=WAITING, columns=BLOCKED)
    gone = leaf(status=WAITING, columns=BLOCKED)
    first = leaf(1)
    insert(factory, chain(first, stranded, gone, status=RUNNING))
    need(factory, stranded, first)
    need(factory, gone, 2**40)
    not_ended = insert(factory, group(leaf(1), leaf(status=ERROR), status=RUNNING))
    found = list(stuck_jobs(factory))
    reported = dict(found)
    assert reported[unsettled.id].startswith("BAD 1 jobs: ended, and what depends on them not settled")
    assert reported[stranded.id].startswith("BAD 2 jobs: waiting for jobs that have all ended or are gone")
    assert f"job {gone.id} (Waiting): waits for job {2**40} (gone)" in reported[stranded.id]
    assert reported[not_ended.id].startswith("BAD 1 jobs: chains, groups or chords that have not ended")
    assert len(found) == 3


def test_blocked_empty_group_is_reported_once(factory: JobFactory) -> None:
    empty = insert(factory, group(status=WAITING, columns=BLOCKED))
    need(factory, empty, insert(factory, leaf(1)))
    (reported,) = stuck_jobs(factory)
    assert (reported[0], "waiting for jobs" in reported[1]) == (empty.id, True)


@pytest.mark.parametrize("status", [QUEUED, RUNNING])
def test_blocked_job_with_an_unfinished_need_is_not_stranded(factory: JobFactory, status: JobStatus) -> None:
    needed, waiting = insert(factory, leaf(status=status)), leaf(status=WAITING, columns=BLOCKED)
    insert(factory, waiting)
    need(factory, waiting, needed)
    assert line(factory.app, "stuck jobs") == "OK no job is stuck"
