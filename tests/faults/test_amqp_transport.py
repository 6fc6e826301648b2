"""`AmqpTransport` writes the same frames as amqp."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from kombu import Producer
from kombu.transport import pyamqp

from jobhandle_celery import celery_compat
from jobhandle_celery.broker.connection import BrokerConnection
from jobhandle_celery.broker.messages import MessageBuilder, RenderedMessage
from tests.broker.messages import received
from tests.broker.pending import OPTIONS, add_request_numbers, an_app, pending, send, templates, three

pytestmark = pytest.mark.faults


@pytest.fixture
def app(rabbitmq_url: str) -> Any:
    return an_app(rabbitmq_url)


@pytest.fixture
def connection(app: Any) -> Iterator[BrokerConnection]:
    with closing(BrokerConnection(app)) as connection:
        yield connection


def check_frames(connection: BrokerConnection, message: RenderedMessage) -> None:
    """Compare the frames that a template makes with those that amqp writes."""
    transport: Any = connection.transport
    publish = partial(transport._kombu.publish, message, transport._producer)
    expected = celery_compat.record_frames(transport._channel, publish)
    assert transport._templates.get(message).render(message) == expected


@pytest.mark.parametrize("case", OPTIONS)
def test_frames_of_a_template_equal_amqps(case: str, app: Any, connection: BrokerConnection) -> None:
    builder = MessageBuilder(app)
    jobs = three(app, OPTIONS[case])
    send(connection, builder, jobs)
    assert len(templates(connection)) == 1
    for job in jobs:
        check_frames(connection, builder.build(job))


@pytest.mark.parametrize("length", [0, 131_072 - 8, 131_072 - 7, 500_000])
def test_body_of_several_frames_is_split_as_by_amqp(
    length: int, app: Any, connection: BrokerConnection
) -> None:
    builder = MessageBuilder(app)
    send(connection, builder, three(app, {}))
    message = builder.build(pending(app, {}, ["a"], {}))
    check_frames(connection, replace(message, body=message.body.ljust(length)))


@pytest.mark.parametrize(
    "value",
    [
        *('\udcff "é"', 0, -1, 2**31, 2**63 - 1, 1.5, True, None, ["a", {"b": [None]}], {}),
        datetime(2026, 1, 1, tzinfo=UTC),
    ],
)
def test_header_of_any_type_is_encoded_as_by_amqp(value: Any, app: Any, connection: BrokerConnection) -> None:
    """Of a custom header; others are named as fields of a message."""
    builder = MessageBuilder(app)
    send(connection, builder, three(app, {}))
    message = builder.build(pending(app, {}, ["a"], {}))
    own = {**message.own_headers, "custom": value, "body": "theirs", "correlation_id": "theirs", "é": 1}
    check_frames(connection, replace(message, own_headers=own))


def test_messages_without_a_template_keep_their_place(app: Any, connection: BrokerConnection) -> None:
    """As compressed ones, and the first for each queue, which kombu declares."""
    plain, compressed = three(app, {}), three(app, {"compression": "gzip"})
    jobs = [
        replace(job, task_id=f"{number:08}")
        for number, job in enumerate(job for both in zip(plain, compressed, strict=True) for job in both)
    ]
    send(connection, MessageBuilder(app), jobs)
    assert [template is None for template in templates(connection)] == [True, False]
    assert [message.headers["id"] for message in received(app)] == [job.task_id for job in jobs]


@pytest.mark.parametrize(
    ("owner", "name"),
    [(Producer, "publish"), (Producer, "_publish"), (pyamqp.Channel, "prepare_message")],
)
def test_header_added_by_patched_method_is_each_messages_own(
    owner: Any, name: str, app: Any, connection: BrokerConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it was patched after the first message."""
    jobs, builder = three(app, {}), MessageBuilder(app)
    send(connection, builder, jobs)
    assert templates(connection) != [None]
    received(app)
    add_request_numbers(owner, name, monkeypatch)
    send(connection, builder, jobs)
    assert {message.headers["request"] for message in received(app)} == {f"request-{n}" for n in range(3)}


def test_recorded_message_that_was_changed_makes_no_template(
    app: Any, connection: BrokerConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A separate guard: a header may be added by code other than the checked methods."""
    monkeypatch.setattr(celery_compat, "publishes_by_kombu", lambda _: True)
    add_request_numbers(Producer, "publish", monkeypatch)
    jobs, builder = three(app, {}), MessageBuilder(app)
    for _ in range(2):
        send(connection, builder, jobs)
    assert templates(connection) == [None]
    assert len({message.headers["request"] for message in received(app)}) == 6
