"""The compared Celery apps: the same broker and task, by what they do beside."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from celery import Celery

from jobhandle_celery import Jobs

from .. import marks
from .peer import Sandbox

TASK = "benchmarks.body"
READY = "the worker is ready"
"""A log message of a worker that is ready, at a level that is shown."""

COMMON: dict[str, Any] = {
    # https://docs.celeryq.dev/en/stable/userguide/optimizing.html, "Prefetch Limits": with many short tasks
    # the multiplier should be large, 64 or 128 for example. All apps here use it.
    "worker_prefetch_multiplier": 64,
    "broker_connection_retry_on_startup": True,
}

KINDS: dict[str, dict[str, Any]] = {
    "bare": {"task_ignore_result": True},
    "redis": {"result_backend": "{redis}"},
    "sqlalchemy": {"result_backend": "db+{database}", "task_track_started": True},
    "django": {"result_backend": "django-db"},
    "ours": {"task_ignore_result": True},
    "beside": {"task_ignore_result": True},
    "durable": {"task_ignore_result": True},
    "claiming": {"task_ignore_result": True},
}
"""The settings in which the apps differ, by kind."""

WITH_JOBS = ("ours", "beside", "durable")


def make_app(kind: str, urls: Mapping[str, str], settings: Mapping[str, Any] | None = None) -> Celery:
    """Create an app of a kind; `urls` has `broker`, `redis` and `database`."""
    if kind == "django":
        from .django_results import set_up  # an optional dependency

        set_up(urls["database"])
    app = Celery("benchmarks", broker=urls["broker"], set_as_current=kind == "django")
    own = {
        name: value.format_map(urls) if isinstance(value, str) else value
        for name, value in KINDS[kind].items()
    }
    app.conf.update({**COMMON, **own, **(settings or {})})
    app.task(name=TASK, durable=kind == "durable")(_body(kind, urls["database"]))
    if kind in WITH_JOBS:
        Jobs(app, urls["database"])
    return app


def _body(kind: str, database_url: str) -> Callable[..., int | None]:
    if kind != "claiming":
        return marks.body
    from .claiming_peer import claiming_body  # which imports this module

    return claiming_body(database_url.replace("postgresql+psycopg://", "postgresql://"))


def urls_of(sandbox: Sandbox) -> dict[str, str]:
    """Return the URLs for `make_app`."""
    return {"broker": sandbox.broker_url, "redis": sandbox.redis_url, "database": sandbox.database_url}


def environment(kind: str, sandbox: Sandbox) -> dict[str, str]:
    """Return the environment variables from which `app_from_environment` creates the same app."""
    named = {f"BENCHMARK_{name.upper()}": url for name, url in urls_of(sandbox).items()}
    return {"BENCHMARK_KIND": kind, **named}


def app_from_environment() -> Celery:
    """Create the app that `environment` describes."""
    urls = {name: os.environ[f"BENCHMARK_{name.upper()}"] for name in ("broker", "redis", "database")}
    return make_app(os.environ["BENCHMARK_KIND"], urls)
