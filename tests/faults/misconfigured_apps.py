"""Apps whose workers do not claim jobs, or not as this version does, and one whose workers do.

The same tasks in each. Every body appends a line: its kind, its text argument, and the id of the job that it
runs for, or "unclaimed". `WRONG` names the apps whose workers must run no job.
"""

import json
import os
from collections.abc import Callable
from typing import Any

from celery import Celery, Task
from celery.worker.consumer import Consumer
from celery.worker.request import Request

from jobhandle_celery import Jobs, current_job
from jobhandle_celery.broker import headers
from tests.apps import append_line

REQUESTS = {
    "request": "tests.faults.misconfigured_apps:ImpatientRequest",
    "revoked": "tests.faults.misconfigured_apps:RevokedRequest",
    "accepted": "tests.faults.misconfigured_apps:AcceptingRequest",
}
"""Request classes that run the body in the worker's main process, by what the task's name ends with."""

KINDS = ["ordinary", "batches", "strategy", *REQUESTS]
WRONG = ["plain", "replaced_consumer"]

BROKER = os.environ.get("JOBHANDLE_TEST_BROKER_URL", "memory://")
DATABASE = os.environ.get("JOBHANDLE_TEST_DATABASE_URL")


def body(kind: str, path: str, text: str) -> None:
    job = current_job()
    append_line(path, f"{kind} {text} {'unclaimed' if job is None else job.job_id}")


def _new_app(name: str) -> Celery:
    app = Celery(name, broker=BROKER, set_as_current=False)
    app.conf.update(json.loads(os.environ.get("JOBHANDLE_TEST_SETTINGS", "{}")))
    return app


def _ordinary(app: Celery, kind: str, **options: Any) -> Any:
    @app.task(name=f"wrong.{kind}", shared=False, **options)
    def task(path: str, text: str) -> None:
        body(kind, path, text)

    return task


class Batches(Task):  # type: ignore[type-arg]  # not generic at run time
    """Collects messages and runs its body in the main process with all of them, as celery-batches."""

    abstract = True

    def Strategy(self, task: Any, app: Celery, consumer: Any) -> Callable[..., None]:  # type: ignore[override]
        def handle(message: Any, _: Any, ack: Any, reject: Any, callbacks: Any, **__: Any) -> None:
            args, kwargs, _embed = message.payload
            task.run(*args, **kwargs)
            ack(None, consumer.connection_errors)

        return handle


def eager_strategy(task: Any, app: Celery, consumer: Any) -> Callable[..., None]:
    """Run a message where it is received."""
    return Batches.Strategy(task, task, app, consumer)


class ImpatientRequest(Request):
    """Runs the body as soon as it is made."""

    def __init__(self, message: Any, **options: Any) -> None:
        super().__init__(message, **options)
        args, kwargs, _ = message.payload
        self.task.run(*args, **kwargs)

    def execute_using_pool(self, pool: Any, **_: Any) -> Any:
        self.acknowledge()


class AcceptingRequest(Request):
    """Runs the body as well when the pool has accepted the message."""

    def on_accepted(self, pid: Any, time_accepted: float) -> None:
        args, kwargs, _ = self.message.payload
        self.task.run(*args, **kwargs)
        super().on_accepted(pid, time_accepted)


class RevokedRequest(Request):
    """Runs the body as well when it is asked whether the task is revoked."""

    def revoked(self) -> bool:
        args, kwargs, _ = self.message.payload
        self.task.run(*args, **kwargs)
        return bool(super().revoked())


class ImpatientConsumer(Consumer):
    """Runs what it receives without a strategy."""

    def create_task_handler(self, *_: Any, **__: Any) -> Callable[[Any], None]:
        plain = super().create_task_handler()

        def handle(message: Any) -> None:
            if not (message.headers or {}).get("task", "").startswith("wrong."):
                plain(message)
                return
            try:
                args, kwargs, _ = message.payload
                self.app.tasks[message.headers["task"]].run(*args, **kwargs)
            except Exception as error:
                self.on_invalid_task(None, message, error)
            else:
                message.ack()

        return handle


def _with_wrong_tasks(name: str) -> Celery:
    app = _new_app(name)
    _ordinary(app, "ordinary")
    _ordinary(app, "batches", base=_batches_or_like_it())
    _ordinary(app, "strategy", Strategy="tests.faults.misconfigured_apps:eager_strategy")
    for kind, request in REQUESTS.items():
        _ordinary(app, kind, Request=request)
    return app


def _batches_or_like_it() -> Any:
    try:
        from celery_batches import Batches as Real  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        return Batches

    class EachByItself(Real):  # type: ignore[misc]
        """celery-batches unchanged, with a body that takes one message's arguments, as the others do."""

        abstract = True
        flush_every, flush_interval = 1, 0.1

        def __call__(self, requests: Any) -> None:
            for request in requests:
                self.run(*request.args, **request.kwargs)

    return EachByItself


plain = _with_wrong_tasks("plain")
"""An app without `Jobs`."""

replaced_consumer = _with_wrong_tasks("replaced_consumer")
replaced_consumer.conf.worker_consumer = "tests.faults.misconfigured_apps:ImpatientConsumer"

right = _new_app("right")
for each in KINDS:
    _ordinary(right, each)

half_right = _with_wrong_tasks("half_right")
"""An app that has `Jobs`, and tasks that would bypass the claim."""

if DATABASE:
    Jobs(right, DATABASE)
    Jobs(half_right, DATABASE)
    if os.environ.get("WRONG_APPS_OLDER"):
        # An older version: it publishes jobs as JSON, and accepts nothing else.
        from jobhandle_celery.broker import kombu_transport, messages

        del headers.PLAIN_CONTENT_TYPES[headers.CONTENT_TYPE]
        kombu_transport.JSON_BODY["content_type"] = "application/json"
        messages.SERIALIZER = "json"
