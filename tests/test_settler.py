"""The end of a job is settled by the process that wrote it, or by a pass of the sweeper."""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import pytest
from sqlalchemy import update

from jobhandle_celery import DatabaseUnavailableError, JobStatus, submitter
from jobhandle_celery.broker.publisher import Published, Publisher
from jobhandle_celery.schema import job
from jobhandle_celery.settler import Settler
from jobhandle_celery.store import NewMember, PendingMessage, settling
from jobhandle_celery.store.nodes import CROWD
from jobhandle_celery.submitter import Submitter
from jobhandle_celery.sweeper import sweep
from tests.publishers import Recorder
from tests.store.harness import FAILURE, Harness
from tests.store.members import Tree, chain, group, node, task
from tests.support import eventually
from tests.unsettled import leave_unsettled, unsettled


@pytest.fixture
def harness(database_url: str) -> Iterator[Harness]:
    harness = Harness(database_url)
    yield harness
    harness.close()


def settle_with(harness: Harness, send: Callable[[list[int]], None]) -> None:
    """Settle what ends on this harness, as a runtime does; `send` gets the ids of the jobs to publish."""
    settler = Settler(harness.store, lambda messages: send([message.job_id for message in messages]))
    harness.database.on_unsettled = settler.settle


def published_by_a_pass(harness: Harness) -> list[int]:
    """Make a pass after the publish grace; return what it has published."""
    harness.pass_time(minutes=2)
    recorder = Recorder()
    assert sweep(harness.store, cast(Publisher, recorder))
    return recorder.published


def test_finish_publishes_what_becomes_ready(harness: Harness) -> None:
    sent: list[int] = []
    settle_with(harness, sent.extend)
    tree = Tree(harness, chain(task(), task()))

    harness.store.runs.finish(tree.run(1), "1")
    assert sent == [tree.ids[2]]
    harness.store.runs.finish(tree.run(2), "1")

    assert tree.statuses() == ["Finished"] * 3


def test_end_of_a_job_that_nothing_needs_is_not_settled(harness: Harness) -> None:
    ended: list[int] = []
    harness.database.on_unsettled = ended.extend

    harness.store.runs.finish(harness.run(harness.submit()), "1")

    assert ended == []


def test_pass_settles_what_a_process_left_that_died_after_its_finish(harness: Harness) -> None:
    tree = Tree(harness, chain(task(), task()))

    harness.store.runs.finish(tree.run(1), "1")
    assert tree.statuses()[2] == "Waiting"

    assert published_by_a_pass(harness) == [tree.ids[2]]
    harness.store.runs.finish(tree.run(2), "1")
    published_by_a_pass(harness)
    assert tree.statuses() == ["Finished"] * 3


def test_pass_settles_what_a_settle_has_cancelled(harness: Harness) -> None:
    tree = Tree(harness, chain(task(), task(), task()))

    harness.store.runs.fail(tree.run(1), FAILURE)
    for _ in range(3):
        published_by_a_pass(harness)

    assert tree.statuses() == ["Error", "Error", "Cancelled", "Cancelled"]


def test_pass_arms_a_job_whose_submitter_died_after_the_commit(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unavailable(_: Sequence[int]) -> list[int]:
        raise DatabaseUnavailableError("away")

    needed = harness.submit()
    with monkeypatch.context() as patched:
        patched.setattr(harness.store.settling, "arm", unavailable)
        tree = Tree(harness, [task(after=(needed,))])
    assert "wait for the sweeper to check their needs" in caplog.text
    harness.store.runs.finish(harness.run(needed), "1")
    assert tree.statuses() == ["Waiting"]

    assert tree.ids[0] in published_by_a_pass(harness)


def test_chain_whose_tasks_run_at_once_is_settled_without_recursion(harness: Harness) -> None:
    depths: list[int] = []
    running = 0

    def run_at_once(job_ids: Sequence[int]) -> None:
        nonlocal running
        running += 1
        depths.append(running)
        for job_id in job_ids:
            harness.store.runs.finish(harness.run(job_id), "1")
        running -= 1

    settle_with(harness, run_at_once)
    tree = Tree(harness, chain(*(task() for _ in range(10))))
    run_at_once([tree.ids[1]])

    assert tree.statuses() == ["Finished"] * 11
    assert max(depths) == 2


@pytest.mark.parametrize("error", [DatabaseUnavailableError("away"), ZeroDivisionError("bug")])
def test_finish_succeeds_if_the_settle_fails(
    harness: Harness, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: Sequence[int]) -> list[int]:
        raise error

    caplog.set_level(logging.DEBUG, logger="jobhandle_celery")  # a repeated bug is logged at DEBUG
    settle_with(harness, lambda _: None)
    tree = Tree(harness, chain(task(), task()))
    with monkeypatch.context() as patched:
        patched.setattr(harness.store.settling, "settle", fails)
        assert harness.store.runs.finish(tree.run(1), "1")

    assert "the sweeper settles them" in caplog.text
    assert published_by_a_pass(harness) == [tree.ids[2]]


def test_jobs_that_a_pass_publishes_meanwhile_are_not_published_again(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many become ready at once that the publish grace passes before the turn of the last."""
    monkeypatch.setattr(submitter, "BATCH", 2)

    class Slow(Recorder):
        eager = False

        def publish(self, messages: Iterable[PendingMessage]) -> Published:
            published = Published()
            for message in messages:
                published.sent.extend(super().publish([message]).sent)
                if len(self.published) == 2:
                    others.extend(published_by_a_pass(harness))
            return published

    others: list[int] = []
    slow = Slow()
    members = [node("chain"), task(parent=0, position=0), node("group", parent=0, position=1)]
    members += [task(parent=2, position=number, needs=((1, None),), when="finished") for number in range(5)]
    tree = Tree(harness, members)
    sender = Submitter(harness.store, cast(Publisher, slow), cast(Any, None))
    harness.database.on_unsettled = Settler(harness.store, sender.send_reserved).settle

    harness.store.runs.finish(tree.run(1), "1")
    sender.drain()

    assert sorted({*slow.published, *others}) == tree.ids[3:]
    assert not set(slow.published[2:]) & set(others)


class Crowd:
    """A group of `CROWD` members and two, which end in one process of a worker."""

    def __init__(self, harness: Harness, *callbacks: NewMember) -> None:
        self.harness = harness
        self.settler = Settler(harness.store, lambda messages: None)
        harness.database.on_unsettled = self.settler.settle
        self.tree = Tree(harness, [*group(*(task() for _ in range(CROWD + 2))), *callbacks])
        harness.store.settling.start_ancestors(self.tree.ids[1], "worker")
        self._worker = harness.worker()

    def end(self, *numbers: int) -> list[int]:
        """End members, and return which are unsettled then."""
        for number in numbers:
            run = self.harness.run(self.tree.ids[number], self._worker)
            with self.settler.end_of_member(self.tree.ids[0]):
                assert self.harness.store.runs.finish(run, "1")
        return self.unsettled()

    def unsettled(self) -> list[int]:
        return [self.tree.ids.index(job_id) for job_id in unsettled(self.harness.database)]

    @property
    def is_crowded(self) -> bool:
        """What a settle has read last."""
        return self.harness.store.settling.is_crowded(self.tree.ids[0])


def test_members_of_large_group_are_settled_with_a_later_one(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_unsettled(monkeypatch)
    crowd = Crowd(harness)

    assert crowd.end(1) == []
    assert crowd.end(2, 3, 4) == [2, 3, 4]
    monkeypatch.setattr(harness.store.settling, "is_crowded", lambda node_id: False)
    assert crowd.end(5) == []


def test_group_whose_last_members_end_is_not_large(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them is settled at once: it may be the last."""
    leave_unsettled(monkeypatch)
    crowd = Crowd(harness)

    with harness.database.transaction() as db:
        db.execute(update(job).where(job.c.id == crowd.tree.ids[2]).values(status_id=JobStatus.FINISHED))
    crowd.end(1)

    assert not crowd.is_crowded


def test_member_that_another_job_needs_is_settled_at_once(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_unsettled(monkeypatch)
    crowd = Crowd(harness, task(parent=0, needs=((1, 0),), when="finished"))

    crowd.end(1)

    assert harness.status(crowd.tree.ids[-1]) == "Submitted"
    assert not crowd.is_crowded


def test_settle_in_another_thread_holds_up_no_commit(harness: Harness) -> None:
    """A worker's thread that writes the results of all its jobs does not wait for a silent broker."""
    answers, sent = threading.Event(), list[int]()

    def send(messages: Sequence[PendingMessage]) -> None:
        assert answers.wait(60)
        sent.extend(message.job_id for message in messages)

    settler = Settler(harness.store, send)
    harness.database.on_unsettled = settler.settle
    tree = Tree(harness, chain(task(), task()))

    with settler.in_another_thread():
        harness.store.runs.finish(tree.run(1), "1")
        assert harness.status(tree.ids[1]) == "Finished"
    assert sent == []
    answers.set()
    settler.drain()

    assert sent == [tree.ids[2]]
    harness.store.runs.finish(tree.run(2), "1")
    assert harness.status(tree.ids[0]) == "Finished"


def test_drain_settles_members_that_wait(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_unsettled(monkeypatch)
    crowd = Crowd(harness)
    assert crowd.end(1, 2, 3) == [2, 3]

    crowd.settler.drain()

    assert crowd.unsettled() == []


def test_thread_settles_members_after_which_none_ends(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "CALM", 3600.0)
    crowd = Crowd(harness)
    crowd.end(*range(1, CROWD + 3))

    eventually(lambda: harness.status(crowd.tree.ids[0]) is JobStatus.FINISHED)
    eventually(lambda: crowd.unsettled() == [])
