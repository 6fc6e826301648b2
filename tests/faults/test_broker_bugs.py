"""Bugs in the transport to RabbitMQ cost speed alone."""

from collections.abc import Callable
from typing import Any

import pytest

from jobhandle_celery import JobStatus, internal_errors
from jobhandle_celery.broker import amqp_transport
from tests.bugs import blames_the_broker, bug, logged_bugs, submit_three_times

pytestmark = pytest.mark.faults


@pytest.mark.parametrize(
    "name", ["__init__", "_open_channel", "_record", "_write", "_on_ack", "_wait_for_confirms"]
)
def test_bug_in_amqp_transport_leaves_messages_to_kombu(
    name: str,
    rabbitmq_url: str,
    sqlite_url: str,
    make_jobs_app: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
) -> None:
    """Also a bug in a callback that amqp calls (fault 25)."""
    monkeypatch.setattr(internal_errors, "_logged", set())
    monkeypatch.setattr(amqp_transport.AmqpTransport, name, bug)
    app = make_jobs_app(sqlite_url, rabbitmq_url)
    count = submit_three_times(app)
    assert app.jobs.count_by_status()[JobStatus.QUEUED] == count
    assert len(logged_bugs(caplog)) == 1
    assert not blames_the_broker(caplog)
