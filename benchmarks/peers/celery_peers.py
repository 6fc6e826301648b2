"""Celery itself, with four ways to remember what became of a task."""

from collections.abc import Mapping
from typing import Any, ClassVar

import redis
from celery import Celery

from tests.servers import execute

from .celery_app import READY, TASK, environment, make_app, urls
from .peer import Peer, Place

_SETTINGS = (
    "`worker_prefetch_multiplier=64` for many short tasks, as its guide "
    "<https://docs.celeryq.dev/en/stable/userguide/optimizing.html> says; prefork, `-c 2`"
)


class CeleryPeer(Peer):
    """What all that run on Celery have in common."""

    kind: ClassVar[str]

    def __init__(self, place: Place, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__(place)
        self.app: Celery = make_app(self.kind, urls(place), settings)

    def submit(self, number: int) -> object:
        """Call the task."""
        return self.app.tasks[TASK].apply_async((number,))

    def purge(self) -> None:
        """Empty the queue, and leave what else is known of it."""
        if self.place.broker_url.startswith("redis"):
            with redis.Redis.from_url(self.place.broker_url) as client:
                client.delete("celery")
        else:
            self.app.control.purge()

    def start_workers(self, count: int = 1) -> None:
        """Start Celery workers, in the prefork pool."""
        for _ in range(count):
            name = f"worker-{len(self.workers)}@localhost"
            # Warnings alone: two lines for each task would be measured too. Mingling takes a second.
            options = ["--pool=prefork", "--concurrency=2", "--loglevel=WARNING", "--without-mingle"]
            app = ["celery", "-A", "benchmarks.peers.worker_app", "worker"]
            self.start([*app, *options, f"--hostname={name}"], READY, **environment(self.kind, self.place))

    def close(self) -> None:
        """Close the connections of the app."""
        super().close()
        self.app.close()


class Bare(CeleryPeer):
    """Celery that remembers nothing."""

    name = "Celery, no results"
    kind = "bare"
    settings = f"{_SETTINGS}; `task_ignore_result=True`"

    def open(self) -> None:
        """Have RabbitMQ confirm: without that a publish can vanish without an error."""
        if not self.place.broker_url.startswith("redis"):
            self.app.conf.broker_transport_options = {"confirm_publish": True}


class RedisResults(CeleryPeer):
    """Celery with its results in Redis."""

    name = "Celery, Redis results"
    kind = "redis"
    settings = _SETTINGS

    def settled(self, count: int) -> bool:
        """Count the results."""
        with redis.Redis.from_url(self.place.redis_url) as client:
            return sum(1 for _ in client.scan_iter("celery-task-meta-*", count=1000)) >= count

    def purge(self) -> None:
        """Forget the results too: they are counted."""
        super().purge()
        with redis.Redis.from_url(self.place.redis_url) as client:
            for key in client.scan_iter("celery-task-meta-*", count=1000):
                client.delete(key)


class SqlalchemyResults(CeleryPeer):
    """Celery with its results in PostgreSQL: what people use for a state that lasts."""

    name = "Celery, SQLAlchemy results"
    kind = "sqlalchemy"
    settings = (
        f"{_SETTINGS}; `task_track_started=True`, sessions kept open "
        "(`database_short_lived_sessions` is off by default)"
    )

    def prepare(self) -> None:
        """Make the tables now: two children that make them at once get in each other's way."""
        backend: Any = self.app.backend
        backend.ResultSession().close()

    def settled(self, count: int) -> bool:
        """Count the rows."""
        asked = "SELECT count(*) FROM celery_taskmeta WHERE status = 'SUCCESS'"
        return int(execute(self.place.database_url, asked)[0][0]) >= count

    def purge(self) -> None:
        """Forget the rows too: they are counted."""
        super().purge()
        execute(self.place.database_url, "DELETE FROM celery_taskmeta")


class DjangoResults(CeleryPeer):
    """Celery with django-celery-results in PostgreSQL."""

    name = "Celery, django-celery-results"
    kind = "django"
    settings = f"{_SETTINGS}; Django's `CONN_MAX_AGE=None`: persistent connections; no `task_track_started`"

    def prepare(self) -> None:
        """Make the tables."""
        from .django_results import migrate  # an optional dependency

        migrate()

    def settled(self, count: int) -> bool:
        """Count the rows."""
        asked = "SELECT count(*) FROM django_celery_results_taskresult WHERE status = 'SUCCESS'"
        return int(execute(self.place.database_url, asked)[0][0]) >= count

    def purge(self) -> None:
        """Forget the rows too: they are counted."""
        super().purge()
        execute(self.place.database_url, "DELETE FROM django_celery_results_taskresult")
