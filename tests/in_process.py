"""Uses this process as a worker's main process and pool process: takes messages, runs bodies."""

import os
import pickle
import uuid
from typing import Any

from celery.app.trace import trace_task_ret

from jobhandle_celery.runtime import runtime_of
from jobhandle_celery.store import Worker
from jobhandle_celery.worker.message_guard import guard_strategy


def become_worker(app: Any) -> Worker:
    """Register this process as a worker with a lease."""
    app.finalize()
    runtime = runtime_of(app)
    runtime.worker = Worker("w1", str(uuid.uuid4()), os.getpid())
    runtime.store.leases.renew(runtime.worker)
    return runtime.worker


def message_of(app: Any) -> Any:
    """Take the next message from the app's queue; None if it is empty."""
    with app.connection() as connection:
        channel = connection.default_channel
        channel.queue_declare(queue=app.conf.task_default_queue)
        return channel.basic_get(app.conf.task_default_queue, no_ack=True)


def run(app: Any, message: Any) -> None:
    """Handle a message as a worker does: check it, pickle it for the child, and trace the task."""
    taken: list[Any] = []
    task = app.tasks[message.headers["task"]]
    guard_strategy(lambda opened, *_: taken.append(opened), task)(message, None)
    (opened,) = taken
    request = {**opened.headers, "args": opened.payload[0], "kwargs": opened.payload[1]}
    pickle.loads(pickle.dumps((request, opened.body)))
    content = opened.content_type, opened.content_encoding
    trace_task_ret(task.name, request["id"], request, opened.body, *content, app=app)
