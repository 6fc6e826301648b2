"""With `jobhandle_fast_publish = False`, RabbitMQ receives the same (Redis: test_redis_transport)."""

from contextlib import closing
from typing import Any

import pytest

from jobhandle_celery.broker import amqp_transport
from jobhandle_celery.broker.connection import BrokerConnection
from jobhandle_celery.broker.messages import MessageBuilder
from tests.broker.messages import received
from tests.broker.pending import OPTIONS, an_app, send, three
from tests.bugs import bug

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("case", OPTIONS)
def test_amqp_transport_sends_the_same_as_kombu(
    case: str, rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = an_app(rabbitmq_url)
    jobs, builder = three(app, OPTIONS[case]), MessageBuilder(app)
    queue = jobs[0].queue
    sent: list[list[Any]] = []
    for fast in (True, False):
        with closing(BrokerConnection(app, fast_publish=fast)) as connection, monkeypatch.context() as patch:
            if not fast:
                patch.setattr(amqp_transport.AmqpTransport, "send", bug)
            for job in jobs:
                send(connection, builder, [job])
            if fast:
                send(connection, builder, jobs)
        messages = received(app, queue or app.conf.task_default_queue)
        assert len(messages) == (6 if fast else 3)
        sent.extend(
            [contents(message) for message in messages[i : i + 3]] for i in range(0, len(messages), 3)
        )
    assert sent == [sent[0]] * 3


def contents(message: Any) -> Any:
    properties = {name: value for name, value in message.properties.items() if name != "delivery_tag"}
    way = message.delivery_info["exchange"], message.delivery_info["routing_key"]
    return message.body, message.headers, properties, message.content_type, message.content_encoding, way
