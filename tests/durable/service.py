"""A service with durable tasks: the app of the workers, and that of the tests (`make_service`)."""

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from celery import Celery, Task, group

from jobhandle_celery import Jobs
from tests.apps import SPEED, WORKERS_LEASE, append_line

BaseTask: Any = Task


class Audited(BaseTask):  # type: ignore[misc]  # untyped in its stubs
    """A base class with an `apply_async` of its own."""

    durable = True

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        headers = {**(options.get("headers") or {}), "audited": True}
        return super().apply_async(args, kwargs, **{**options, "headers": headers})


def add(x: int, y: int) -> int:
    return x + y


def fail(message: str) -> None:
    raise ValueError(message)


def submit_other(self: Any, x: int) -> str:
    """Submit a durable task from a body, and return its task id."""
    task_id: str = self.app.tasks["shop.add"].delay(x, 1).id
    return task_id


def retry_once(self: Any, path: str) -> int:
    append_line(path, str(self.request.retries))
    if self.request.retries == 0:
        raise self.retry(countdown=0)
    retries: int = self.request.retries
    return retries


def write_request(self: Any, path: str) -> None:
    """Write what the body sees of its request, and retry once."""
    request = self.request
    names = [name for name in vars(type(request)) if not name.startswith("_")]
    seen = {name: value for name in names if not callable(value := getattr(request, name))}
    append_line(path, json.dumps(seen, default=str))
    if request.retries == 0:
        raise self.retry(countdown=0)


def report(self: Any, path: str) -> bool:
    """Report progress, as Celery's documentation shows it, until the file exists."""
    self.update_state(state="PROGRESS", meta={"current": 3, "total": 10, "message": "copying"})
    while not os.path.exists(path):
        time.sleep(0.05)
    return True


def submit_canvas(self: Any) -> list[int]:
    """Submit a group of durable tasks from a body, and return their job ids."""
    tasks: Any = group(self.app.tasks["shop.add"].s(number, 1) for number in range(2))
    return [result.job_id for result in tasks.delay().results]


def make_service(
    broker_url: str, database_url: str | None, settings: Mapping[str, Any] | None = None
) -> Celery:
    """Make the app; it has `Jobs` as `app.jobs`."""
    app = Celery("shop", broker=broker_url, set_as_current=False)
    app.conf.update({**SPEED, **(settings or {})})
    app.task(name="shop.add", durable=True, shared=False)(add)
    app.task(name="shop.fail", durable=True, shared=False)(fail)
    app.task(name="shop.plain_add", shared=False)(add)
    app.task(name="shop.audited", base=Audited, shared=False)(add)
    for body in (submit_other, submit_canvas, retry_once, report):
        app.task(name=f"shop.{body.__name__}", bind=True, durable=True, shared=False)(body)
    app.task(name="shop.plain_submit_other", bind=True, shared=False)(submit_other)
    for name, durable in (("shop.write_request", True), ("shop.plain_write_request", False)):
        app.task(name=name, bind=True, durable=durable, shared=False)(write_request)
    if database_url is not None:
        Jobs(app, database_url)
    return app


app = make_service(
    os.environ.get("JOBHANDLE_TEST_BROKER_URL", "memory://"),
    os.environ.get("JOBHANDLE_TEST_DATABASE_URL"),
    WORKERS_LEASE | json.loads(os.environ.get("JOBHANDLE_TEST_SETTINGS", "{}")),
)
