"""Trees: what becomes ready, what can no longer start, and how a node ends."""

import contextlib
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
from sqlalchemy import update

from jobhandle_celery.errors import UnknownJobError, ValidationError
from jobhandle_celery.schema import job
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import NewMember, Selection
from jobhandle_celery.store.settling import Settling
from tests.store.cutting import Cut, Cutter, Died
from tests.store.harness import FAILURE, REPUBLISH_AFTER, Harness, about
from tests.store.members import Tree, chain, chord, group, node, settle_all, task
from tests.store.racing import race, waiting
from tests.support import eventually

SUBMITTED, WAITING, RUNNING = "Submitted", "Waiting", "Running"
FINISHED, ERROR, CANCELLED = "Finished", "Error", "Cancelled"


def test_member_of_a_chain_is_ready_once_the_one_before_has_finished(harness: Harness) -> None:
    tree = Tree(harness, chain(task(), task(), task()))
    assert tree.statuses() == [SUBMITTED, SUBMITTED, WAITING, WAITING]

    assert tree.finish(1) == [tree.ids[2]]

    assert tree.statuses() == [RUNNING, FINISHED, SUBMITTED, WAITING]
    assert tree.finish(2) == [tree.ids[3]]
    assert tree.finish(3) == []
    assert tree.statuses() == [FINISHED] * 4
    assert not any(harness.row(job_id)["unsettled"] for job_id in tree.ids)
    assert not any(harness.row(job_id)["due_at"] for job_id in tree.ids)


def test_body_of_a_chord_is_ready_once_every_header_task_has_finished(harness: Harness) -> None:
    tree = Tree(harness, chord(task(), task(), body=task()))

    assert tree.finish(2) == []
    assert tree.finish(3) == [tree.ids[4]]

    assert tree.statuses() == [RUNNING, FINISHED, FINISHED, FINISHED, SUBMITTED]
    assert tree.finish(4) == []
    assert tree.statuses()[0] == FINISHED


def test_failure_cancels_what_needs_it_and_ends_the_node(harness: Harness) -> None:
    tree = Tree(harness, chain(task(), task(), task()))

    harness.store.runs.fail(tree.run(1), FAILURE)
    assert settle_all(harness, tree.ids[1]) == []

    assert tree.statuses() == [ERROR, ERROR, CANCELLED, CANCELLED]
    assert harness.row(tree.ids[2])["message"] == f"needs job {tree.ids[1]}, which ended in Error"
    assert harness.row(tree.ids[3])["message"] == f"needs job {tree.ids[2]}, which ended in Cancelled"
    root = harness.row(tree.ids[0])
    assert root["message"] == f"job {tree.ids[1]} (shop.thumbnail) ended in Error: ValueError: no good"
    assert harness.store.queries.events(tree.ids[2])[-1].actor == "settle"
    assert harness.store.queries.events(tree.ids[0])[-1].actor == "settle"


def test_cancelled_member_cancels_the_node(harness: Harness) -> None:
    tree = Tree(harness, group(task(), task()))

    harness.store.control.cancel(tree.ids[1], None, terminate=False)
    settle_all(harness, tree.ids[1])
    assert tree.statuses() == [SUBMITTED, CANCELLED, SUBMITTED]
    tree.finish(2)

    assert tree.statuses() == [CANCELLED, CANCELLED, FINISHED]


@pytest.mark.parametrize("empty", [chain(), group(), [node("chain"), node("group", parent=0, position=0)]])
def test_node_without_members_finishes(harness: Harness, empty: list[NewMember]) -> None:
    ended: list[int] = []
    harness.database.on_unsettled = ended.extend
    tree = Tree(harness, empty)
    harness.database.on_unsettled = None
    settle_all(harness, *ended)

    assert set(tree.statuses()) == {FINISHED}


@pytest.mark.parametrize("when", ["finished", "ended", "failed"])
@pytest.mark.parametrize("end", [FINISHED, ERROR, CANCELLED])
def test_job_that_needs_an_existing_one_starts_or_is_cancelled(harness: Harness, when: str, end: str) -> None:
    needed = harness.submit()
    tree = Tree(harness, [task(after=(needed,), when=when)])
    assert tree.statuses() == [WAITING]

    run = harness.run(needed)
    match end:
        case "Finished":
            harness.store.runs.finish(run, "1")
        case "Error":
            harness.store.runs.fail(run, FAILURE)
        case _:
            harness.store.runs.stop(run, "")
    settle_all(harness, needed)

    met = when == "ended" or (when, end) in (("finished", FINISHED), ("failed", ERROR))
    assert tree.statuses() == [SUBMITTED if met else CANCELLED]


def test_two_last_members_that_end_at_once_release_the_body_once(harness: Harness, other: Harness) -> None:
    """Both ends are committed before either is settled."""
    tree = Tree(harness, chord(task(), task(), body=task()))
    for number in (2, 3):
        assert harness.store.runs.finish(tree.run(number), "1")
    header = tree.ids[1]

    mine, others = harness.store.settling, other.store.settling
    race(lambda: mine.settle([tree.ids[2]]), lambda: others.settle([tree.ids[3]]))
    assert harness.status(header) is JobStatus.FINISHED
    released = race(lambda: mine.settle([header]), lambda: others.settle([header]))

    assert [message.job_id for messages in released for message in messages] == [tree.ids[4]]
    assert harness.events(header).count(JobStatus.FINISHED) == 1
    assert harness.events(tree.ids[4]) == [JobStatus.WAITING, JobStatus.SUBMITTED]


def test_times_of_a_member_begin_when_its_needs_are_met(harness: Harness) -> None:
    tree = Tree(harness, chain(task(countdown=0.5), task(countdown=600.0, expires_in=7200.0), task()))
    assert harness.due_in(tree.ids[2]) is None
    assert harness.row(tree.ids[2])["expires"] is None
    harness.pass_time(minutes=30)

    assert tree.finish(1) == []

    waiting = harness.row(tree.ids[2])
    assert waiting["status_id"] is JobStatus.WAITING
    assert not waiting["blocked"]
    assert about(harness.ahead(waiting["not_before"]), timedelta(minutes=10))
    assert about(harness.ahead(waiting["due_at"]), timedelta(minutes=10))
    assert about(harness.ahead(waiting["expires"]), timedelta(hours=2))
    harness.pass_time(minutes=11)
    assert tree.finish(2) == [tree.ids[3]]


def test_scheduled_member_waits_for_its_time(harness: Harness) -> None:
    tree = Tree(harness, chain(task(), task(scheduled_for=timedelta(hours=1), expires=timedelta(minutes=30))))
    assert about(harness.due_in(tree.ids[2]), timedelta(minutes=30))

    assert tree.finish(1) == []

    waiting = harness.row(tree.ids[2])
    assert about(harness.ahead(waiting["not_before"]), timedelta(hours=1))
    assert about(harness.due_in(tree.ids[2]), timedelta(minutes=30))


def test_blocked_member_that_expires_cancels_what_needs_it(harness: Harness) -> None:
    tree = Tree(harness, chain(task(), task(expires=timedelta(minutes=5)), task()))
    harness.pass_time(minutes=6)

    assert harness.store.sweep.expire() == 1
    settle_all(harness, tree.ids[2])

    assert tree.statuses() == [SUBMITTED, SUBMITTED, CANCELLED, CANCELLED]


def test_linked_callback_does_not_count_for_its_node(harness: Harness) -> None:
    callback = task(parent=0, needs=((1, 0),), when="finished")
    tree = Tree(harness, [*group(task()), callback])

    tree.finish(1)
    assert tree.statuses() == [RUNNING, FINISHED, SUBMITTED]
    harness.store.runs.fail(tree.run(2), FAILURE)
    settle_all(harness, tree.ids[2])

    assert tree.statuses() == [FINISHED, FINISHED, ERROR]


def test_node_names_the_task_that_failed_below_a_nested_node(harness: Harness) -> None:
    tree = Tree(harness, chord(task(), task(), body=task()))

    harness.store.runs.fail(tree.run(3), FAILURE)
    settle_all(harness, tree.ids[3])
    assert tree.statuses()[:2] == [RUNNING, RUNNING]
    tree.finish(2)

    assert tree.statuses() == [ERROR, ERROR, FINISHED, ERROR, CANCELLED]
    named = f"job {tree.ids[3]} (shop.thumbnail) ended in Error: ValueError: no good"
    assert harness.row(tree.ids[0])["message"] == harness.row(tree.ids[1])["message"] == named


def test_job_that_needs_several_waits_for_all(harness: Harness) -> None:
    first, second = harness.submit(), harness.submit()
    tree = Tree(harness, [task(), task(needs=((0, None),), after=(first, second), when="ended")])
    harness.store.control.cancel(first, None, terminate=False)
    settle_all(harness, first)
    tree.finish(0)
    assert tree.statuses() == [FINISHED, WAITING]

    harness.store.control.cancel(second, None, terminate=False)
    assert settle_all(harness, second) == [tree.ids[1]]


def test_job_that_needs_a_final_one_is_ready_at_the_submit(harness: Harness) -> None:
    needed = harness.place(FINISHED).job_id

    tree = Tree(harness, [task(after=(needed,))])

    assert tree.submitted[0].status is JobStatus.SUBMITTED
    assert tree.statuses() == [SUBMITTED]
    assert not harness.row(needed)["needed"]


@pytest.mark.parametrize("which", ["unknown", "another user's", "another namespace's"])
def test_need_that_the_submitter_cannot_see_is_refused(harness: Harness, which: str) -> None:
    match which:
        case "unknown":
            needed = 999_999_999
        case "another user's":
            needed = harness.submit(username="bob")
        case _:
            elsewhere = Harness(harness.url, harness.database, namespace=f"{harness.settings.namespace}-2")
            needed = elsewhere.submit(username="ann")
    mine = harness.submit(username="ann")

    with pytest.raises(UnknownJobError, match=f"^no job {needed}$"):
        Tree(harness, [task(username="ann"), task(username="ann", after=(mine, needed))])

    assert [job.id for job in harness.store.pages.page(Selection(username="ann"), None, 10).jobs] == [mine]


def test_resubmitted_need_is_settled_in_its_next_round(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A settle of the former round is slow: it clears the mark of its own round alone."""
    needed = harness.submit()
    Tree(harness, [task(after=(needed, harness.submit()), when="ended")])
    clear = Settling._clear_flags

    def late(settling: Settling, ended: Any) -> None:
        monkeypatch.undo()
        assert harness.store.control.resubmit(needed, str(uuid.uuid4()), None)
        harness.store.runs.fail(harness.run(needed), FAILURE)
        clear(settling, ended)

    harness.store.runs.stop(harness.run(needed), "")
    monkeypatch.setattr(Settling, "_clear_flags", late)
    harness.store.settling.settle([needed])

    row = harness.row(needed)
    assert row["unsettled"]
    assert row["due_at"] is not None


def test_slow_settle_does_not_cancel_what_needs_a_resubmitted_job(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The need is resubmitted after the settle has read that it ended in Error."""
    needed = harness.submit()
    tree = Tree(harness, [task(after=(needed,), when="finished")])
    cancel = Settling._cancel_dependents

    def late(settling: Settling, needs_id: int, status: JobStatus | None) -> None:
        monkeypatch.undo()
        assert harness.store.control.resubmit(needed, str(uuid.uuid4()), None)
        cancel(settling, needs_id, status)

    harness.store.runs.fail(harness.run(needed), FAILURE)
    monkeypatch.setattr(Settling, "_cancel_dependents", late)
    harness.store.settling.settle([needed])

    assert tree.statuses() == [WAITING]


def test_slow_settle_does_not_end_a_resubmitted_tree(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root ends and is resubmitted after the settle has read that no sibling is unfinished."""
    tree = Tree(harness, group(task(), task()))
    harness.store.runs.fail(tree.run(1), FAILURE)
    settle_all(harness, tree.ids[1])
    end = Settling._end_node

    def late(settling: Settling, node_id: int) -> None:
        monkeypatch.undo()
        end(settling, node_id)  # the settle of a sweep
        assert harness.store.control.resubmit(tree.ids[0], str(uuid.uuid4()), None) == [tree.ids[1]]
        end(settling, node_id)

    assert harness.store.runs.finish(tree.run(2), "1")
    monkeypatch.setattr(Settling, "_end_node", late)
    harness.store.settling.settle([tree.ids[2]])

    assert tree.statuses() == ["Resubmitted", "Resubmitted", FINISHED]


def test_unreported_cancel_of_a_member_is_reported_once_it_is_settled(harness: Harness) -> None:
    tree = Tree(harness, group(task(), task()))
    harness.queue(tree.ids[1])
    harness.store.control.cancel(tree.ids[1], None, terminate=False)
    harness.pass_time(minutes=2)
    assert harness.store.sweep.unreported_cancels(10) == []

    settle_all(harness, tree.ids[1])

    assert about(harness.due_in(tree.ids[1]), REPUBLISH_AFTER)
    harness.pass_time(minutes=20)
    assert [lost.job_id for lost in harness.store.sweep.unreported_cancels(10)] == [tree.ids[1]]
    assert harness.due_in(tree.ids[1]) is None


# Unique keys.


def test_unfinished_job_with_the_key_of_a_member_becomes_that_member(harness: Harness) -> None:
    existing = harness.run(harness.submit(unique_key="k"))

    tree = Tree(harness, chain(task(), task(unique_key="k"), task()))

    assert tree.ids[2] == existing.job_id
    assert not tree.submitted[2].fresh
    adopted = harness.row(existing.job_id)
    assert (adopted["root_id"], adopted["parent_id"], adopted["position"]) == (tree.ids[0], tree.ids[0], 1)
    harness.store.runs.finish(existing, "1")
    assert settle_all(harness, existing.job_id) == [tree.ids[3]]
    tree.finish(3)
    tree.finish(1)
    assert tree.statuses() == [FINISHED] * 4


def test_existing_member_that_ends_before_its_node_knows_is_counted(harness: Harness) -> None:
    existing = harness.run(harness.submit(unique_key="k"))
    tree = Tree(harness, group(task(unique_key="k"), task()), armed=False)
    tree.finish(2)
    harness.store.runs.fail(existing, FAILURE)
    assert tree.statuses()[0] == WAITING

    harness.pass_time(minutes=2)
    due = harness.store.settling.reserve_unsettled(10)
    assert due.blocked == [tree.ids[0]]
    harness.store.settling.arm(due.blocked)

    assert tree.statuses() == [ERROR, ERROR, FINISHED]


def test_key_that_a_job_of_another_tree_holds_is_refused(harness: Harness) -> None:
    tree = Tree(harness, group(task(unique_key="k")))

    with pytest.raises(ValidationError, match=f"unique_key: .*job {tree.ids[1]} has it"):
        Tree(harness, group(task(), task(unique_key="k")))
    with pytest.raises(ValidationError, match="one member"):
        Tree(harness, group(task(unique_key="l"), task(unique_key="l")))


# A process dies.


@pytest.mark.faults
@pytest.mark.parametrize("done", [False, True])
def test_settle_that_dies_at_any_step_is_completed_by_a_sweep(
    own_harness: Harness, done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness, cutter = own_harness, Cutter(own_harness.database.engine)
    for step in count(1):
        tree = Tree(harness, [*chord(task(), body=task()), task(needs=((2, None),), when="failed")])
        harness.store.runs.finish(tree.run(2), "1")
        with contextlib.suppress(Died), cutter.cutting(Cut(step, done, dies=True)):
            settle_all(harness, tree.ids[2])
        left = [tree.ids[2]]
        while left:
            harness.pass_time(minutes=2)
            left = harness.store.settling.reserve_unsettled(10).ended
            harness.store.settling.settle(left)

        assert tree.statuses() == [RUNNING, FINISHED, FINISHED, SUBMITTED, CANCELLED], f"step {step}"
        if not cutter.has_cut:
            break
    assert step > 5


def test_settle_that_waits_for_another_round_leaves_its_flag(server_harness: Harness) -> None:
    """The next round ends while the settle of the former one waits for the row."""
    harness = server_harness
    tree = Tree(harness, group(task(), task()))
    harness.store.settling.start_ancestors(tree.ids[1], "worker w1")  # nothing else follows from its end
    harness.store.runs.finish(tree.run(1), "1")
    again = update(job).where(job.c.id == tree.ids[1]).values(task_id=str(uuid.uuid4()), attempt=2)

    with ThreadPoolExecutor(1) as pool:
        with harness.database.transaction() as db:
            db.execute(again)
            settled = pool.submit(harness.store.settling.settle, [tree.ids[1]])
            eventually(lambda: waiting(harness))
        assert settled.result(timeout=30) == []

    assert harness.row(tree.ids[1])["unsettled"]
