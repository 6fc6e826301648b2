"""Messages of jobs and of plain tasks, made comparable, and compared."""

import json
from typing import Any

from kombu.compression import decompress

from tests.broker.messages import Make
from tests.broker.options import CASES, QUEUES, declare
from tests.broker.retries import ARGS, retry_job, retry_plain, stored, taken

OWN = {"id", "root_id", "argsrepr", "kwargsrepr", "jobhandle", "retries", "compression"}
"""Headers that differ by design: ids, displayed arguments, ours."""
OWN_PROPERTIES = {
    *("correlation_id", "delivery_tag", "delivery_info", "body_encoding", "application_headers"),
    # A job's result goes to its row, and the content type is ours.
    *("reply_to", "content_type", "content_encoding"),
    # Celery passes its own options on as properties.
    *("argsrepr", "kwargsrepr", "origin", "redelivered"),
}


def comparable(message: Any) -> dict[str, Any]:
    """Return a message without the parts that differ in each message."""
    args, kwargs, embedded = json.loads(_opened(message))
    info = message.delivery_info
    return {
        "headers": {name: value for name, value in message.headers.items() if name not in OWN},
        "properties": {
            "priority": 0,  # RabbitMQ takes none for this
            **{name: value for name, value in message.properties.items() if name not in OWN_PROPERTIES},
        },
        "compression": message.headers.get("compression"),
        "route": (info["exchange"], info["routing_key"]),
        "body": (args, kwargs, embedded),
        "root is the task": message.headers["root_id"] == message.headers["id"],
        "shown": (message.headers["argsrepr"], _without_job_id(message.headers["kwargsrepr"])),
    }


def _opened(message: Any) -> Any:
    """The body as JSON. Some transports of kombu have decompressed it already."""
    body = message.body if isinstance(message.body, bytes) else message.body.encode()
    return body if body.startswith(b"[") else decompress(body, message.headers["compression"])


def _without_job_id(shown: str) -> str:
    if not shown.startswith("{'job_id': "):
        return shown
    first, comma, rest = shown.partition(", ")
    return "{" + rest if comma else "{}" + first.partition("}")[2]


def compare(case: str, url: str, make: Make) -> None:
    """Assert that a job's messages have the options of a plain task's, for one of `CASES` on a broker."""
    settings, given = CASES[case]
    app = make(url, **{"task_queues": QUEUES, "task_default_queue": "default", **settings})
    other = make(url, task_default_delivery_mode=2, task_default_priority=9)
    declare(app)
    task = app.tasks["tests.add"]
    task.apply_async(ARGS, **given)
    sent = taken(app)
    expected = comparable(sent)
    handle = app.jobs.handle()
    for _ in range(3):  # the first declares the queue, the second makes the template, the third uses it
        handle.submit(task.s(*ARGS).set(**given))
        message = taken(app)
        assert comparable(message) == expected
    other.jobs._runtime.submitter.send([stored(app, task.s(*ARGS).set(**given))])
    assert comparable(taken(app)) == expected
    retry_plain(app, sent)
    retried = comparable(taken(app))
    retry_job(app, message)
    # A job's retry keeps the options of its submit; plain Celery drops some of them.
    kept = {name: expected[name] for name in ("properties", "route", "shown", "compression")}
    kept["headers"] = retried["headers"] | {"ignore_result": expected["headers"]["ignore_result"]}
    assert comparable(taken(app)) == {**retried, **kept}
