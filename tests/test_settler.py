"""The end of a job is settled by the process that wrote it, or by a pass of the sweeper."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import pytest

from jobhandle_celery import DatabaseUnavailableError, submitter
from jobhandle_celery.broker.publisher import Published, Publisher
from jobhandle_celery.settler import Settler
from jobhandle_celery.store import PendingMessage
from jobhandle_celery.submitter import Submitter
from jobhandle_celery.sweeper import sweep
from tests.store.harness import FAILURE, Harness
from tests.store.members import Tree, chain, node, task
from tests.test_sweeper import Recorder


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
