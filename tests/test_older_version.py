"""A rolling upgrade: messages that are published as plain JSON are accepted (fault 4)."""

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy
from celery import Celery

from jobhandle_celery import Jobs, JobStatus
from jobhandle_celery.schema import job, job_event
from tests.in_process import become_worker, message_of, run

TASK_ID = "c09e0d30-6bea-4db5-9898-8ec4f594bdb8"
MESSAGE: dict[str, Any] = {
    "body": '[[1], {"y": 2}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]',
    "content-encoding": "utf-8",
    "content-type": "application/json",
    "headers": {
        "lang": "py",
        "task": "older.add",
        "id": TASK_ID,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": TASK_ID,
        "parent_id": None,
        "argsrepr": "(1,)",
        "kwargsrepr": "{'job_id': 1, 'y': 2}",
        "origin": "gen11276@host",
        "ignore_result": None,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
        "jobhandle": {"id": 1, "attempt": 1},
    },
    "properties": {
        "correlation_id": TASK_ID,
        "reply_to": "",
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": "older"},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": "d3b994a5-e143-40c1-bc5f-4a7a2a9b4ed1",
    },
}
"""The older version's message for the row below; by hand, its body would be in base64."""

MESSAGE_OF_A_RETRY = {"retries": 2, "argsrepr": "(1,)", "group": None, "replaced_task_nesting": 0}

ROW: dict[str, Any] = {
    "id": 1,
    "namespace": "default",
    "task": "older.add",
    "task_id": TASK_ID,
    "args": "[1]",
    "kwargs": '{"y": 2}',
    "username": "ann",
    "message": "from the older version",
    "meta": '{"a": 1}',
    "queue": "older",
    "routing": "{}",
    "publish_count": 1,
    "republish_deferrals": 0,
    "status_id": JobStatus.QUEUED,
    "terminate": False,
    "revoke_reported": False,
    "attempt": 0,
    "lost_count": 0,
    "max_attempts": 1,
}
EVENT = {
    "job_id": 1,
    "attempt": 0,
    "status_id": JobStatus.SUBMITTED,
    "message": "submitted",
    "actor": "user ann",
}


def add(x: int, y: int = 0) -> int:
    return x + y


@pytest.fixture
def app(empty_database_url: str) -> Iterator[Any]:
    """An app of this version, and the row of a job whose message an older version published."""
    app: Any = Celery("newer", broker="memory://", set_as_current=False)
    app.conf.task_default_queue = "older"
    app.task(name="older.add", shared=False)(add)
    jobs = Jobs(app, empty_database_url)
    jobs.upgrade_schema()
    engine = sqlalchemy.create_engine(empty_database_url)
    moment = datetime.now(UTC) - timedelta(minutes=5)
    with engine.begin() as connection:
        connection.execute(job.insert().values(**ROW, submitted=moment, due_at=moment))
        connection.execute(job_event.insert().values(**EVENT, at=moment))
    engine.dispose()
    become_worker(app)
    yield app
    jobs.close()


def deliver(app: Any, **headers: Any) -> Any:
    """Return the older version's message as a consumer gets it."""
    raw = json.loads(json.dumps(MESSAGE))
    raw["headers"].update(headers)
    raw["body"] = base64.b64encode(raw["body"].encode()).decode()
    with app.connection() as connection:
        channel = connection.default_channel
        channel.queue_declare(queue="older")
        channel._put("older", raw)
        return message_of(app)


@pytest.mark.parametrize("headers", [{}, MESSAGE_OF_A_RETRY], ids=["first", "retry"])
def test_message_of_the_version_before_is_taken(app: Any, headers: dict[str, Any]) -> None:
    """A message in the broker during an upgrade runs its job (fault 4)."""
    run(app, deliver(app, **headers))
    record = app.jobs.attach(1).get_job()
    assert (record.status, record.result, record.attempt) == (JobStatus.FINISHED, 3, 1)
    assert (record.username, record.meta, record.message) == ("ann", {"a": 1}, "from the older version")
