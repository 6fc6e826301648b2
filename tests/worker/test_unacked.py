"""What a worker notes in Redis of the job messages that it has received and not acknowledged."""

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from kombu import Connection, Producer, Queue

from jobhandle_celery import JobStatus
from jobhandle_celery.broker.headers import HEADER
from jobhandle_celery.worker.unacked import UnackedMessages
from tests.apps import lines_of
from tests.support import eventually
from tests.worker.cluster import DEFAULT_QUEUE, Cluster, NewCluster

QUEUE = "notes"


class Notes:
    """A channel with the notes of its messages; `later` has what was to be called after a moment."""

    def __init__(self, connection: Connection, client: redis.Redis) -> None:
        self.channel: Any = connection.default_channel
        self.producer: Any = Producer(connection)
        self.later: list[Callable[[], None]] = []
        self.unacked = UnackedMessages(self.channel, lambda _, function: self.later.append(function))
        self.client: Any = client
        self.queue: Any = Queue(QUEUE, channel=self.channel)
        self.queue.declare()

    def receive(self, *, job: bool = True) -> Any:
        self.producer.publish("body", routing_key=QUEUE, headers={HEADER: {}} if job else {})
        return self.queue.get()

    def noted(self) -> set[str]:
        """Return the delivery tags of the notes in Redis."""
        tags = {tag.decode() for tag in self.client.hkeys(self.channel.unacked_key)}
        assert tags == {tag.decode() for tag in self.client.zrange(self.channel.unacked_index_key, 0, -1)}
        return tags

    def pass_time(self) -> None:
        later, self.later = self.later, []
        for function in later:
            function()

    def waiting(self) -> int:
        return int(self.client.llen(QUEUE))


def refuse(*_: Any) -> None:
    raise ConnectionError("no Redis")


@pytest.fixture
def notes(redis_url: str) -> Iterator[Notes]:
    with Connection(redis_url) as connection, redis.Redis.from_url(redis_url) as client:
        yield Notes(connection, client)


def test_message_that_is_acknowledged_soon_is_not_noted(
    notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []
    monkeypatch.setattr(notes.unacked, "_write", lambda *parts: written.append(parts))
    for _ in range(3):
        notes.receive().ack()
    assert len(notes.later) == 1
    notes.pass_time()

    assert written == []


def test_messages_are_noted_together_and_their_notes_removed(notes: Notes) -> None:
    messages = [notes.receive() for _ in range(3)]
    assert notes.noted() == set()
    assert len(notes.later) == 1
    notes.pass_time()
    assert notes.noted() == {message.delivery_tag for message in messages}

    first, second, third = messages
    first.ack()
    third.ack()
    assert len(notes.noted()) == 3
    assert len(notes.later) == 1
    notes.pass_time()
    assert notes.noted() == {second.delivery_tag}


def test_message_of_a_plain_task_is_noted_at_once(notes: Notes) -> None:
    message = notes.receive(job=False)
    assert notes.noted() == {message.delivery_tag}
    message.ack()
    assert notes.noted() == set()
    assert notes.later == []


@pytest.mark.parametrize("noted", [True, False])
def test_rejected_message_returns_to_its_queue(notes: Notes, noted: bool) -> None:
    message = notes.receive()
    if noted:
        notes.pass_time()
    message.requeue()

    assert notes.waiting() == 1
    assert notes.noted() == set()


@pytest.mark.parametrize("by", ["close", "exit"])
def test_closed_channel_returns_what_is_not_noted_yet(notes: Notes, by: str) -> None:
    notes.receive().ack()
    notes.receive()
    if by == "close":
        notes.channel.close()
    else:
        notes.channel.qos._on_collect()  # as at the end of a process whose worker has failed

    assert notes.waiting() == 1
    assert notes.noted() == set()


def test_after_the_end_kombu_writes_each_note_at_once(notes: Notes) -> None:
    """A warm shutdown has no event loop any more, and its bodies may end much later."""
    acknowledged, kept = notes.receive(), notes.receive()
    notes.pass_time()
    acknowledged.ack()
    notes.unacked.end()
    assert notes.noted() == {kept.delivery_tag}
    kept.ack()
    assert notes.noted() == set()
    assert notes.receive().delivery_tag in notes.noted()


def test_note_is_written_before_it_is_removed(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A note that stayed would be delivered again after the visibility timeout."""
    entered, opened = threading.Event(), threading.Event()
    write: Any = notes.unacked._write

    def slowly(*parts: Any) -> None:
        if not entered.is_set():
            entered.set()
            assert opened.wait(60)
        write(*parts)

    monkeypatch.setattr(notes.unacked, "_write", slowly)
    message = notes.receive()
    first = threading.Thread(target=notes.pass_time)
    first.start()
    assert entered.wait(60)
    message.ack()
    second = threading.Thread(target=notes.unacked.flush)
    second.start()
    second.join(0.2)  # enough for a batch that does not wait
    opened.set()
    first.join()
    second.join()

    assert notes.noted() == set()


@pytest.mark.parametrize("handler", ["ack", "requeue"])
def test_handler_of_a_signal_may_acknowledge(
    notes: Notes, monkeypatch: pytest.MonkeyPatch, handler: str
) -> None:
    """Celery does so at a cold shutdown, in the thread that may be within a batch."""
    first, write = notes.receive(), notes.unacked._write
    assert write is not None
    notes.pass_time()

    def interrupted(*parts: Any) -> None:
        monkeypatch.setattr(notes.unacked, "_write", write)
        with notes.unacked._changing:
            getattr(first, handler)()
        write(*parts)

    monkeypatch.setattr(notes.unacked, "_write", interrupted)
    other = notes.receive()
    notes.pass_time()
    notes.pass_time()

    assert notes.waiting() == (handler == "requeue")
    assert other.delivery_tag in notes.noted()


def test_batch_that_fails_is_logged_and_written_with_the_next(
    notes: Notes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    acknowledged, received = notes.receive(), notes.receive()
    notes.pass_time()
    acknowledged.ack()
    other = notes.receive()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "jobhandle_celery"):
        patch.setattr(notes.unacked, "_write", refuse)
        notes.pass_time()

    assert "no Redis" in caplog.text
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert notes.later == []
    notes.receive().ack()
    notes.pass_time()
    assert notes.noted() == {received.delivery_tag, other.delivery_tag}


def test_closed_channel_removes_the_notes_of_what_is_acknowledged(notes: Notes) -> None:
    """Also if it has nothing to return."""
    message = notes.receive()
    notes.pass_time()
    message.ack()
    notes.channel.close()

    assert notes.noted() == set()


def test_end_after_the_connection_is_lost_is_no_internal_error(
    notes: Notes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Celery closes the connection before it stops its steps."""
    message, connection = notes.receive(), notes.producer.connection
    notes.pass_time()
    message.ack()
    with monkeypatch.context() as patch:
        patch.setattr(notes.unacked, "_write", refuse)
        connection.collect()
        connection.close()
    with caplog.at_level(logging.WARNING, "jobhandle_celery"):
        notes.unacked.end()

    assert "the connection was closed" in caplog.text
    assert {record.levelname for record in caplog.records} == {"WARNING"}


# With workers.


def holding(new_cluster: NewCluster, **settings: Any) -> tuple[Cluster, Any, list[Any]]:
    """Return a worker that runs one body and has received three jobs more, none of which is noted."""
    cluster = new_cluster(settings={"worker_prefetch_multiplier": 4, **settings})
    worker = cluster.start(concurrency=1, environment={"NOTES_LATE": "1"})
    path, sign = cluster.new_file(), cluster.new_file()
    handles = [cluster.submit("until_there", str(path), str(sign), max_attempts=2) for _ in range(4)]
    eventually(lambda: worker.log.count("received") == len(handles) and lines_of(path))
    assert lines_of(path) == ["begun"]
    assert cluster.redis.llen(DEFAULT_QUEUE) == 0
    assert not cluster.redis.exists("unacked")
    return cluster, worker, [handles, path, sign]


def test_reserved_jobs_return_to_their_queue_when_their_worker_shuts_down(new_cluster: NewCluster) -> None:
    cluster, worker, (handles, _, sign) = holding(new_cluster)
    worker.terminate()
    # The notes are written once the worker consumes no more: else it may start a reserved job.
    eventually(lambda: cluster.redis.hlen("unacked") == 3)
    sign.touch()
    worker.wait()

    assert cluster.redis.llen(DEFAULT_QUEUE) == 3
    assert not cluster.redis.exists("unacked")
    cluster.start(concurrency=1)
    assert [handle.wait(60) for handle in handles] == [JobStatus.FINISHED] * 4
    assert [handle.get_job().attempt for handle in handles] == [1] * 4


def test_reserved_jobs_of_a_killed_worker_are_published_again(new_cluster: NewCluster) -> None:
    """No note of them was written: kombu would never deliver them again."""
    cluster, worker, (handles, path, sign) = holding(new_cluster, jobhandle_republish_after=2)
    worker.stop_process()  # so that its body does not end meanwhile
    worker.kill_children()
    worker.kill()
    sign.touch()
    cluster.start(concurrency=1)

    assert [handle.wait(60) for handle in handles] == [JobStatus.FINISHED] * 4
    assert [handle.get_job().attempt for handle in handles] == [2, 1, 1, 1]
    assert len(lines_of(path)) == 1 + 2 * len(handles)
