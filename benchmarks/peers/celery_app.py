"""The Celery apps of the contest: one broker, one task, and five ways to remember what became of it."""

import os
from collections.abc import Mapping
from typing import Any

from celery import Celery

from jobhandle_celery import Jobs

from .. import marks
from .peer import Place

TASK = "benchmarks.body"
READY = "the worker is ready"
"""What a worker says then, at a level that is shown."""

COMMON: dict[str, Any] = {
    # https://docs.celeryq.dev/en/stable/userguide/optimizing.html, "Prefetch Limits": with many short tasks
    # the multiplier should be large, 64 or 128 for example. It serves every app here alike.
    "worker_prefetch_multiplier": 64,
    "broker_connection_retry_on_startup": True,
}

KINDS: dict[str, dict[str, Any]] = {
    "bare": {"task_ignore_result": True},
    "redis": {"result_backend": "{redis}"},
    "sqlalchemy": {"result_backend": "db+{database}", "task_track_started": True},
    "django": {"result_backend": "django-db"},
    "ours": {"task_ignore_result": True},
}
"""By name, the settings in which they differ."""


def make_app(kind: str, place: Mapping[str, str], settings: Mapping[str, Any] | None = None) -> Celery:
    """Make an app of a kind; `place` has the URLs `broker`, `redis` and `database`."""
    if kind == "django":
        from .django_results import set_up  # an optional dependency

        set_up(place["database"])
    app = Celery("benchmarks", broker=place["broker"], set_as_current=kind == "django")
    own = {
        name: value.format_map(place) if isinstance(value, str) else value
        for name, value in KINDS[kind].items()
    }
    app.conf.update({**COMMON, **own, **(settings or {})})
    app.task(name=TASK)(marks.body)
    if kind == "ours":
        Jobs(app, place["database"])
    return app


def urls(place: Place) -> dict[str, str]:
    """Return what `make_app` needs of a place."""
    return {"broker": place.broker_url, "redis": place.redis_url, "database": place.database_url}


def environment(kind: str, place: Place) -> dict[str, str]:
    """Return the variables by which a worker process finds the same app: see `worker_app`."""
    named = {f"BENCHMARK_{name.upper()}": url for name, url in urls(place).items()}
    return {"BENCHMARK_KIND": kind, **named}


def app_from_environment() -> Celery:
    """Make the app that `environment` describes."""
    place = {name: os.environ[f"BENCHMARK_{name.upper()}"] for name in ("broker", "redis", "database")}
    return make_app(os.environ["BENCHMARK_KIND"], place)
