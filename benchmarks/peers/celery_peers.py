"""Plain Celery: without results, and with three result backends."""

from collections.abc import Mapping
from typing import Any, ClassVar

import redis
from celery import Celery

from tests.servers import execute

from .celery_app import READY, TASK, environment, make_app, urls_of
from .peer import Peer, Sandbox

_SETTINGS = (
    "`worker_prefetch_multiplier=64` for many short tasks, as its guide "
    "<https://docs.celeryq.dev/en/stable/userguide/optimizing.html> recommends; prefork, `-c 2`"
)


class CeleryPeer(Peer):
    """A system that runs on Celery."""

    kind: ClassVar[str]
    pool = "prefork"
    """The pool of its workers."""
    concurrency = 2
    """The number of their processes, threads or greenlets."""
    seconds = 0.0
    """For which each body sleeps."""

    def __init__(self, sandbox: Sandbox, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__(sandbox)
        self.app: Celery = make_app(self.kind, urls_of(sandbox), settings)

    def arguments(self, number: int) -> tuple[float, ...]:
        """Return the arguments of the task."""
        return (number, self.seconds) if self.seconds else (number,)

    def submit(self, number: int) -> object:
        """Call the task."""
        return self.app.tasks[TASK].apply_async(self.arguments(number))

    def purge(self) -> None:
        """Empty the queue."""
        if self.sandbox.broker_url.startswith("redis"):
            with redis.Redis.from_url(self.sandbox.broker_url) as client:
                client.delete("celery")
        else:
            self.app.control.purge()

    def start_workers(self, count: int = 1) -> None:
        """Start Celery workers, in their pool."""
        # At the level INFO, two log lines per task would be measured. Mingling takes a second.
        pool = [f"--pool={self.pool}", f"--concurrency={self.concurrency}"]
        options = [*pool, "--loglevel=WARNING", "--without-mingle"]
        command = ["celery", "-A", "benchmarks.peers.worker_app", "worker", *options]
        commands = [[*command, f"--hostname=worker-{number}@localhost"] for number in range(count)]
        self.start(commands, READY, **environment(self.kind, self.sandbox))

    def close(self) -> None:
        """Close the connections of the app."""
        super().close()
        self.app.close()


class Bare(CeleryPeer):
    """Celery without results."""

    name = "Celery, no results"
    kind = "bare"
    settings = f"{_SETTINGS}; `task_ignore_result=True`"

    def open(self) -> None:
        """Enable publisher confirms: without them RabbitMQ may lose a message without an error."""
        if not self.sandbox.broker_url.startswith("redis"):
            self.app.conf.broker_transport_options = {"confirm_publish": True}


class RedisResults(CeleryPeer):
    """Celery with results in Redis."""

    name = "Celery, Redis results"
    kind = "redis"
    settings = _SETTINGS

    def settled(self, count: int) -> bool:
        """Count the results."""
        with redis.Redis.from_url(self.sandbox.redis_url) as client:
            return sum(1 for _ in client.scan_iter("celery-task-meta-*", count=1000)) >= count

    def purge(self) -> None:
        """Empty the queue and delete the results, which `settled` counts."""
        super().purge()
        with redis.Redis.from_url(self.sandbox.redis_url) as client:
            for key in client.scan_iter("celery-task-meta-*", count=1000):
                client.delete(key)


class SqlalchemyResults(CeleryPeer):
    """Celery with results in PostgreSQL."""

    name = "Celery, SQLAlchemy results"
    kind = "sqlalchemy"
    settings = (
        f"{_SETTINGS}; `task_track_started=True`, sessions kept open "
        "(`database_short_lived_sessions` is off by default)"
    )

    def prepare(self) -> None:
        """Create the tables: two children that create them at once conflict."""
        backend: Any = self.app.backend
        backend.ResultSession().close()

    def settled(self, count: int) -> bool:
        """Count the rows."""
        statement = "SELECT count(*) FROM celery_taskmeta WHERE status = 'SUCCESS'"
        return int(execute(self.sandbox.database_url, statement)[0][0]) >= count

    def purge(self) -> None:
        """Empty the queue and delete the rows, which `settled` counts."""
        super().purge()
        execute(self.sandbox.database_url, "DELETE FROM celery_taskmeta")


class DjangoResults(CeleryPeer):
    """Celery with django-celery-results in PostgreSQL."""

    name = "Celery, django-celery-results"
    kind = "django"
    settings = f"{_SETTINGS}; Django's `CONN_MAX_AGE=None`: persistent connections; no `task_track_started`"

    def prepare(self) -> None:
        """Create the tables."""
        from .django_results import migrate  # an optional dependency

        migrate()

    def settled(self, count: int) -> bool:
        """Count the rows."""
        statement = "SELECT count(*) FROM django_celery_results_taskresult WHERE status = 'SUCCESS'"
        return int(execute(self.sandbox.database_url, statement)[0][0]) >= count

    def purge(self) -> None:
        """Empty the queue and delete the rows, which `settled` counts."""
        super().purge()
        execute(self.sandbox.database_url, "DELETE FROM django_celery_results_taskresult")
