"""The row has the whole declaration of a queue (fault 19)."""

import json
from typing import Any

import pytest
from kombu import Exchange, Queue, binding

from jobhandle_celery.broker.stored_options import declared, described
from tests.broker.messages import ADD, Make
from tests.broker.retries import stored

bound_to: Any = [binding(Exchange("e", "topic"), routing_key="k", arguments={"z": None})]
QUEUES = {
    "kombu's defaults": Queue("q"),
    "Celery's own": Queue("celery", Exchange("celery"), routing_key="celery"),
    "an exchange of its own": Queue(
        "q", Exchange("media", "topic", durable=False, delivery_mode=1, arguments={"a": 1}), routing_key="#"
    ),
    "limits": Queue("q", expires=60, message_ttl=5.5, max_length=10, max_length_bytes=100, max_priority=5),
    "arguments": Queue("q", queue_arguments={"x-queue-type": "quorum"}, binding_arguments={"b": [1]}),
    "for one consumer": Queue("q", durable=False, exclusive=True, no_ack=True, consumer_arguments={"c": 1}),
    "not declared": Queue("q", no_declare=True, alias="other"),
    "a binding": Queue("q", bound_to, routing_key=""),
}


def attributes(queue: Queue) -> dict[str, Any]:
    made: dict[str, Any] = queue.as_dict(recurse=True)
    return made


def test_cases_cover_every_attribute_of_a_queue() -> None:
    tried = {name for queue in QUEUES.values() for name in described(queue)}
    assert tried == {name for name, _ in Queue.attrs}


@pytest.mark.parametrize("kind", QUEUES)
def test_described_queue_is_declared_equal(kind: str) -> None:
    record = json.loads(json.dumps(described(QUEUES[kind])))
    assert attributes(declared(record)) == attributes(QUEUES[kind])


def test_publisher_declares_queue_of_submitter(make: Make) -> None:
    """Even if it configures a queue of that name: two services share one database."""
    submitter = make(task_queue_max_priority=9, task_default_queue="shared")
    publisher = make(task_default_queue="shared")
    job_id = stored(submitter, ADD)
    (pending,) = publisher.jobs._runtime.store.outbox.reserve([job_id])
    (queue,) = publisher.jobs._runtime.publisher._process_builder().build(pending).options["declare"]
    assert queue.queue_arguments == {"x-max-priority": 9}
