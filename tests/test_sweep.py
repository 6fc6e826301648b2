"""One pass of the sweep, with a recorder in the place of the broker."""

from collections.abc import Iterable, Iterator
from typing import Any, cast

import pytest

from jobhandle_celery import JobStatus
from jobhandle_celery.broker.publisher import Published, Publisher
from jobhandle_celery.store import DAMPED_AT_MOST, PendingMessage
from jobhandle_celery.sweeper import sweep
from tests.store.harness import Bench


class Recorder:
    """A publisher that notes what it was given; its queues are as full as the test says."""

    def __init__(self, depth: int | dict[str, int] | None = 0) -> None:
        self.reachable = True
        self.given: list[int] = []
        self.unsendable: set[int] = set()
        self._depth = depth

    def depth(self, queue: str) -> int | None:
        return self._depth[queue] if isinstance(self._depth, dict) else self._depth

    def publish(self, messages: Iterable[PendingMessage]) -> Published:
        published = Published()
        for message in messages:
            self.given.append(message.job_id)
            if message.job_id in self.unsendable:
                published.reject(message, "it is too bad")
            else:
                published.sent.append(message)
        return published


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    bench = Bench(database_url)
    yield bench
    bench.close()


def passing(bench: Bench, recorder: Any) -> bool:
    return sweep(bench.store, cast(Publisher, recorder))


def late(bench: Bench, *, queue: str = "q") -> int:
    """Queue a job and let its patience pass."""
    job_id = bench.submit(queue=queue)
    bench.queue(job_id)
    bench.pass_time(hours=1)
    return job_id


def test_what_is_due_is_sent_and_marked(bench: Bench) -> None:
    submitted = bench.submit()
    bench.pass_time(hours=1)
    recorder = Recorder()

    assert passing(bench, recorder)

    assert recorder.given == [submitted]
    assert bench.status(submitted) is JobStatus.QUEUED


def test_a_second_pass_within_the_interval_does_nothing(bench: Bench) -> None:
    passing(bench, Recorder())
    late(bench)
    passing(bench, Recorder())
    recorder = Recorder()

    assert not passing(bench, recorder)

    assert recorder.given == []


def test_a_lost_message_is_sent_again_when_its_queue_is_empty(bench: Bench) -> None:
    job_id = late(bench)
    recorder = Recorder(depth=0)

    passing(bench, recorder)

    assert recorder.given == [job_id]


def test_a_full_queue_puts_off_a_second_message_a_few_times_and_no_more(bench: Bench) -> None:
    """Other tasks' messages in the queue hide no lost job for ever (mutant 4)."""
    job_id = late(bench)
    recorder = Recorder(depth=1_000_000)

    for _ in range(DAMPED_AT_MOST):
        passing(bench, recorder)
        assert recorder.given == []
        bench.pass_time(hours=1)
    passing(bench, recorder)

    assert recorder.given == [job_id]


def test_what_a_queue_falls_short_of_is_sent_again_the_oldest_first(bench: Bench) -> None:
    """The rest is a backlog: what workers have reserved is in no queue, and would cost all of it again."""
    oldest, old, *young = [late(bench) for _ in range(5)]
    recorder = Recorder(depth=3)

    passing(bench, recorder)

    assert recorder.given == [oldest, old]
    assert [bench.row(job_id)["republish_deferrals"] for job_id in young] == [1, 1, 1]


def test_a_loss_among_the_young_is_hidden_a_few_times_and_no_more(bench: Bench) -> None:
    jobs = [late(bench) for _ in range(3)]
    recorder = Recorder(depth=len(jobs))
    for _ in range(DAMPED_AT_MOST):
        passing(bench, recorder)
        bench.pass_time(hours=1)
    assert recorder.given == []

    passing(bench, recorder)

    assert recorder.given == jobs


def test_each_queue_is_counted_for_itself(bench: Bench) -> None:
    lost = late(bench, queue="empty")
    late(bench, queue="full")
    recorder = Recorder({"full": 1, "empty": 0})

    passing(bench, recorder)

    assert recorder.given == [lost]


def test_a_broker_that_cannot_be_asked_hides_nothing(bench: Bench) -> None:
    job_id = late(bench)
    recorder = Recorder(depth=None)

    passing(bench, recorder)

    assert recorder.given == [job_id]


def test_a_broker_that_is_not_reached_reserves_nothing(bench: Bench) -> None:
    job_id = bench.submit()
    bench.pass_time(hours=1)
    before = bench.row(job_id)
    recorder = Recorder()
    recorder.reachable = False

    passing(bench, recorder)

    assert bench.row(job_id) == before


def test_a_job_that_cannot_be_sent_holds_up_no_other(bench: Bench) -> None:
    bad, good = bench.submit(), bench.submit()
    bench.pass_time(hours=1)
    recorder = Recorder()
    recorder.unsendable = {bad}

    passing(bench, recorder)

    assert bench.status(good) is JobStatus.QUEUED
    assert bench.status(bad) is JobStatus.SUBMITTED
    assert bench.store.queries.events(bad)[-1].message == "it is too bad"


def test_a_pass_settles_the_lost_and_sends_them_on(bench: Bench) -> None:
    job_id = bench.submit(max_attempts=2)
    bench.run(job_id)
    bench.pass_steadily(bench.settings.lease * 2)
    bench.pass_time(seconds=bench.settings.pass_interval.total_seconds() + 1)
    recorder = Recorder()

    assert passing(bench, recorder)

    assert recorder.given == [job_id]
    assert bench.status(job_id) is JobStatus.QUEUED
