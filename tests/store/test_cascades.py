"""What needs a failed job is cancelled, however long the chain behind it, or large the crowd beside it."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import pytest
from sqlalchemy import select

from jobhandle_celery.schema import job, job_event
from jobhandle_celery.settler import Settler
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import PendingMessage, dependencies, settling
from tests.store.harness import FAILURE, Harness
from tests.store.members import Tree, cancel, chain, group, resubmit, task
from tests.store.racing import in_the_middle, steps

STEPS = 600
"""More than one cascade takes."""


@pytest.fixture
def ready(harness: Harness) -> list[int]:
    """What became ready, in a process that settles what ends."""
    ready: list[int] = []

    def send(messages: Sequence[PendingMessage]) -> None:
        ready.extend(message.job_id for message in messages)

    settler = Settler(harness.store, send, is_alone=lambda: True)  # however long it takes
    harness.database.on_unsettled = settler.settle
    return ready


def ends(harness: Harness, tree: Tree) -> Counter[int]:
    """Return how many events show each row of a tree as Cancelled."""
    cancels = select(job_event.c.job_id).where(
        job_event.c.job_id.in_(tree.ids), job_event.c.status_id == JobStatus.CANCELLED
    )
    with harness.database.autocommit() as db:
        return Counter(db.execute(cancels).scalars())


@pytest.mark.usefixtures("ready")
def test_failure_cancels_a_long_chain_in_few_statements(harness: Harness) -> None:
    tree = Tree(harness, chain(*(task() for _ in range(STEPS))))
    run = tree.run(1)

    made = steps(harness, lambda: harness.store.runs.fail(run, FAILURE))

    assert made < STEPS / 5
    with harness.database.autocommit() as db:
        columns = (job.c.id, job.c.status_id, job.c.message, job.c.unsettled)
        rows = {row.id: row for row in db.execute(select(*columns).where(job.c.id.in_(tree.ids)))}
    assert rows[tree.ids[0]].status_id is JobStatus.ERROR
    assert rows[tree.ids[2]].message == f"needs job {tree.ids[1]}, which ended in Error"
    for before, job_id in zip(tree.ids[2:], tree.ids[3:], strict=False):
        assert rows[job_id].status_id is JobStatus.CANCELLED
        assert rows[job_id].message == f"needs job {before}, which ended in Cancelled"
    assert ends(harness, tree) == dict.fromkeys(tree.ids[2:], 1)
    assert not any(row.unsettled for row in rows.values())


def test_cascade_spares_what_may_still_start(harness: Harness, ready: list[int]) -> None:
    """Of a diamond, what waits for any end starts, and what also needs another job is cancelled with it."""
    first, beside = harness.submit(), harness.submit()
    tree = Tree(
        harness,
        [
            task(after=(first,)),
            task(needs=((0, None),)),
            task(needs=((0, None), (1, None)), after=(beside,)),
            task(needs=((1, None),), when="ended"),
            task(needs=((3, None), (2, None)), when="ended"),
            task(needs=((2, None),), when="failed"),
        ],
    )

    harness.store.runs.fail(harness.run(first), FAILURE)

    assert tree.statuses() == ["Cancelled", "Cancelled", "Cancelled", "Submitted", "Waiting", "Cancelled"]
    assert ready == [tree.ids[3]]
    harness.store.runs.finish(tree.run(3), "1")
    assert tree.statuses()[4] == "Submitted"
    named = [harness.row(tree.ids[number])["message"] for number in (1, 2, 5)]
    assert named[0] == f"needs job {tree.ids[0]}, which ended in Cancelled"
    assert named[1] in [f"needs job {tree.ids[number]}, which ended in Cancelled" for number in (0, 1)]
    assert named[2] == f"needs job {tree.ids[2]}, which ended in Cancelled"


@pytest.mark.faults
@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("other", ["resubmit", "cancel"])
def test_cascade_meets_a_change_at_any_statement(harness: Harness, other: str) -> None:
    """Its first row is resubmitted, or a later one is cancelled: nothing is cancelled without a reason."""

    def failing() -> tuple[Tree, Callable[[], object]]:
        first = harness.submit()
        tree = Tree(harness, [task(after=(first,)), *(task(needs=((before, None),)) for before in range(3))])
        run = harness.run(first)
        return tree, lambda: harness.store.runs.fail(run, FAILURE)

    def change(tree: Tree) -> None:
        if other == "cancel":
            cancel(harness, tree.ids[2])
        elif harness.status(tree.ids[0]) is JobStatus.CANCELLED:
            (first,) = harness.store.queries.needs(tree.ids[0])
            harness.write(first.id, status_id=JobStatus.FINISHED)  # what it needs is not in its way any more
            resubmit(harness, tree.ids[0])

    others = set[str]()
    count = steps(harness, failing()[1])
    for number in range(1, count + 1):
        tree, fail = failing()
        in_the_middle(harness, number, fail, partial(change, tree))
        statuses = tree.statuses()
        if statuses[0] == "Cancelled":
            assert statuses == ["Cancelled"] * 4, f"stopped at statement {number} of {count}"
        else:
            # It was resubmitted before the cascade, and the others wait for it, or after it.
            assert statuses[0] == "Resubmitted"
            assert len(set(statuses[1:])) == 1, f"stopped at statement {number} of {count}"
            others |= set(statuses[1:])
    assert others == ({"Waiting", "Cancelled"} if other == "resubmit" else set())


@pytest.mark.faults
@pytest.mark.usefixtures("ready")
def test_cascade_changes_no_row_of_the_next_round(harness: Harness) -> None:
    """Its tree is cancelled and resubmitted at any of its statements."""

    def failing() -> tuple[Tree, Callable[[], object]]:
        tree = Tree(harness, chain(*(task() for _ in range(4))))
        run = tree.run(1)
        return tree, lambda: harness.store.runs.fail(run, FAILURE)

    def begin_next_round(tree: Tree) -> None:
        if cancel(harness, tree.ids[0]) == "Error":
            resubmit(harness, tree.ids[0])

    resubmitted = 0
    count = steps(harness, failing()[1])
    for number in range(1, count + 1):
        tree, fail = failing()
        in_the_middle(harness, number, fail, partial(begin_next_round, tree))
        first, *others = tree.statuses()[1:]
        if first == "Resubmitted":
            assert others == ["Waiting"] * 3, f"stopped at statement {number} of {count}"
            resubmitted += 1
    assert resubmitted


@pytest.mark.parametrize("fails", [True, False])
def test_crowd_of_dependents_is_changed_in_parts(
    harness: Harness, ready: list[int], fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dependencies, "MANY", {"many": True, "most": 2})
    for name in ("make_ready", "cancel_dependents"):
        monkeypatch.setattr(settling, name, getattr(dependencies, name).__wrapped__)
    needed = harness.submit()
    tree = Tree(harness, [task(after=(needed,)) for _ in range(5)])

    run = harness.run(needed)
    if fails:
        harness.store.runs.fail(run, FAILURE)
    else:
        harness.store.runs.finish(run, "1")

    assert tree.statuses() == ["Cancelled" if fails else "Submitted"] * 5
    assert ready == ([] if fails else tree.ids)


@pytest.mark.usefixtures("ready")
def test_cascade_ends_the_groups_of_what_it_cancels(harness: Harness) -> None:
    first = harness.submit()
    tree = Tree(harness, [*group(task(after=(first,)), task(after=(first,))), task(needs=((0, None),))])

    harness.store.runs.fail(harness.run(first), FAILURE)

    assert tree.statuses() == ["Cancelled"] * 4
