"""A contract with amqp, as tests/test_celery_compat.py has them of others."""

import amqp
import pytest
from kombu import Connection

from jobhandle_celery import celery_compat

pytestmark = pytest.mark.faults


def test_amqp_confirms_by_events_and_publishes_by_attribute(rabbitmq_url: str) -> None:
    """Otherwise `AmqpTransport` falls back to kombu: one round trip for each message."""
    acknowledged: list[int] = []
    with Connection(rabbitmq_url, transport_options={"confirm_publish": True}) as connection:
        channel = celery_compat.open_confirm_channel(
            connection.connection,
            lambda *args, **_: celery_compat.publish_unconfirmed(channel, *args),
            lambda number, multiple: acknowledged.append(number),
            lambda number, multiple: None,
        )
        channel.basic_publish(amqp.Message("text"), "", "nowhere")
        assert not acknowledged
        connection.drain_events(timeout=10)
    assert acknowledged == [1]
