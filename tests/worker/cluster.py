"""A place where jobs run: a database, a broker with results, workers, and their results and events."""

import itertools
import json
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from celery.result import AsyncResult

from jobhandle_celery import Job, JobHandle, Jobs
from tests.reaper import Reaper
from tests.servers import execute
from tests.support import eventually
from tests.workers import WorkerProcess

SPEED: dict[str, Any] = {
    "jobhandle_lease": 3,
    "jobhandle_sweep_interval": 0.2,
    "jobhandle_republish_after": 60,
    "jobhandle_publish_grace": 1,
    "worker_prefetch_multiplier": 1,
    "broker_connection_retry_on_startup": True,
}
"""Jobs are republished late: a job runs because of its first message, unless a test changes this."""

DEFAULT_QUEUE = "celery"

_numbers = itertools.count(1)


class Cluster:
    """The servers and settings that a group of workers shares; `app` and `jobs` are the test's side."""

    def __init__(
        self,
        folder: Path,
        reaper: Reaper,
        database_url: str,
        broker_url: str,
        settings: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        results_url: str | None = None,
    ) -> None:
        """Make one; `results_url` is a Redis, the broker unless given."""
        results_url = results_url or broker_url
        self.folder = folder
        self.database_url = database_url
        self.broker_url = broker_url
        self.settings = {**SPEED, "result_backend": results_url, **(settings or {})}
        self.workers: list[WorkerProcess] = []
        self.redis = redis.Redis.from_url(results_url)
        self.app = Celery("client", broker=broker_url, set_as_current=False)
        self.app.conf.update(self.settings)
        self.jobs = Jobs(self.app, database_url)
        self._reaper = reaper
        self._environment = dict(environment or {})

    def start(
        self, app: str = "tests.worker.bodies:app", *, ready: bool = True, **options: Any
    ) -> WorkerProcess:
        """Start a worker; without `ready` the caller waits, say after it has started another."""
        settings = {**self.settings, **options.pop("settings", {})}
        worker = WorkerProcess(
            app,
            folder=self.folder,
            reaper=self._reaper,
            database_url=options.pop("database_url", self.database_url),
            broker_url=options.pop("broker_url", self.broker_url),
            settings=settings,
            environment={**self._environment, **options.pop("environment", {})},
            **options,
        )
        self.workers.append(worker)
        if ready:
            worker.wait_until_ready()
        return worker

    def submit(self, task: str, *args: Any, **fields: Any) -> JobHandle:
        """Submit `worker.<task>`, or a task whose whole name is given, and return its handle."""
        handle = self.jobs.handle()
        handle.submit(Job(task=_named(task), args=args, **fields))
        return handle

    def submit_parked(self, task: str, *args: Any, **fields: Any) -> tuple[JobHandle, bytes]:
        """Submit a job and take its message from a parked queue: no worker receives it before `deliver`."""
        queue = f"parked-{uuid.uuid4()}"
        handle = self.submit(task, *args, queue=queue, **fields)
        message = self.redis.lpop(queue)
        assert isinstance(message, bytes)
        return handle, message

    def deliver(self, message: bytes, queue: str = DEFAULT_QUEUE, **headers: Any) -> None:
        """Put a message into a queue, as a redelivering broker; `headers` replace its own."""
        copy = json.loads(message)
        copy["headers"].update(headers)
        # A worker identifies a delivery by its tag.
        copy["properties"]["delivery_tag"] = str(uuid.uuid4())
        copy["properties"]["delivery_info"]["routing_key"] = queue
        self.redis.lpush(queue, json.dumps(copy))

    def call(self, task: str, *args: Any, **options: Any) -> "AsyncResult[Any]":
        """Send a plain task, no job."""
        return self.app.send_task(_named(task), args, **options)

    def fence(self, queue: str = DEFAULT_QUEUE) -> None:
        """Return when a worker of one process has processed every message that is in its queue now."""
        task_id = self.call("add", 1, 1, queue=queue).id
        eventually(lambda: self.meta(task_id), message="the fence")

    def meta(self, task_id: str | None) -> dict[str, Any] | None:
        """Return the result backend's entry for a task id."""
        stored = self.redis.get(f"celery-task-meta-{task_id}")
        return None if stored is None else json.loads(stored)

    def state(self, task_id: str | None) -> str | None:
        """Return the state of a task in the result backend; None if it holds nothing."""
        return (self.meta(task_id) or {}).get("status")

    def new_file(self) -> Path:
        """Return a new path in the cluster's folder."""
        return self.folder / f"lines-{next(_numbers)}"

    @contextmanager
    def events(self) -> Iterator["Events"]:
        """Capture the workers' events (of those started with `arguments=["-E"]`)."""
        captured = Events(self.app)
        try:
            yield captured
        finally:
            captured.close()

    def close(self) -> None:
        for worker in self.workers:
            worker.end()
        self.jobs.close()
        self.app.close()
        self.redis.flushdb()
        self.redis.close()


class Events:
    """Events as Flower receives them."""

    def __init__(self, app: Celery) -> None:
        self._seen: deque[dict[str, Any]] = deque()
        self._thread = threading.Thread(target=self._capture, args=(app,), daemon=True)
        self._receiver: Any = None
        self._thread.start()
        # Events sent before the binding exists are lost; so wait for an event of our own first.
        with app.events.default_dispatcher() as publisher:
            eventually(lambda: self._seen or publisher.send("test-listening"), message="no events")

    def _capture(self, app: Celery) -> None:
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": self._seen.append})
            self._receiver = receiver
            for _ in receiver.consume(limit=None, timeout=None, safety_interval=0.05, wakeup=False):
                pass

    def of(self, task_id: str | None) -> list[str]:
        """Return the kinds of the events about a task, in their order."""
        return [event["type"] for event in list(self._seen) if event.get("uuid") == task_id]

    def all(self) -> list[dict[str, Any]]:
        """Return the events of all tasks and workers, in the order in which they came."""
        return list(self._seen)

    def close(self) -> None:
        self._receiver.should_stop = True
        self._thread.join(10)


NewCluster = Callable[..., Cluster]


def leases_until(cluster: Cluster, condition: str) -> int:
    """Return how many workers have a lease until a moment that the condition names."""
    counted = f"SELECT count(*) FROM jobhandle_worker WHERE lease_until > {condition}"
    return int(execute(cluster.database_url, counted)[0][0])


def statuses(cluster: Cluster, handle: JobHandle) -> Sequence[str]:
    """Return the statuses that a job went through, in order."""
    return [str(event.status) for event in cluster.jobs.events(handle.job_id)]


def _named(task: str) -> str:
    return task if "." in task else f"worker.{task}"
