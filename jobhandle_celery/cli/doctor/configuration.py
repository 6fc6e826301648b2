"""Checks of the app's configuration, as this process reads it."""

from collections.abc import Iterator
from datetime import timedelta
from fnmatch import fnmatchcase

from celery.concurrency import ALIASES  # type: ignore[attr-defined]  # not in its stubs
from kombu.serialization import prepare_accept_content

from ...celery_compat import ignored_time_limits
from ...settings import ignored as settings_ignored
from ..formatting import format_duration
from .findings import Deployment, Finding, bad, ok, unknown, warn

SHORT_LEASE = timedelta(seconds=10)
"""A machine under load, or one that is migrated, may pause for some seconds."""

JSON, SIGNED, PICKLE = "application/json", "application/data", "application/x-python-serialize"


def settings(deployment: Deployment) -> Iterator[Finding]:
    """Look for settings that are not read: a misspelled one has no effect."""
    ignored = settings_ignored(deployment.conf)
    for key, nearest in ignored.items():
        yield warn(
            f"the configuration has {key}, which is no setting of jobhandle-celery",
            f"remove it, or set {nearest}" if nearest else "remove it",
        )
    if not ignored:
        yield ok("each jobhandle_ key of the configuration is a setting")


def durable(deployment: Deployment) -> Iterator[Finding]:
    """Look for patterns of jobhandle_durable that include no task of this app."""
    patterns = deployment.conf.get("jobhandle_durable")
    if patterns is None or isinstance(patterns, bool):
        yield ok(f"jobhandle_durable is {bool(patterns)}")
        return
    if not isinstance(patterns, (list, tuple, set, frozenset)):
        yield bad(
            f"jobhandle_durable is {patterns!r}", "set True, False, or a list of patterns of task names"
        )
        return
    unmatched = [
        pattern
        for pattern in sorted(map(str, patterns))
        if not any(fnmatchcase(name, pattern) for name in deployment.app.tasks)
    ]
    for pattern in unmatched:
        yield warn(
            f"jobhandle_durable has {pattern!r}, which is the name of no task of this app",
            "correct it, or leave it if such tasks are registered in other processes alone",
        )
    if not unmatched:
        yield ok("each pattern of jobhandle_durable is of a task of this app")


def lease(deployment: Deployment) -> Finding:
    """Check that a worker can renew its lease in time, and that the lease is longer than a pause."""
    lease, latency = deployment.settings.lease, deployment.database
    shown = format_duration(lease)
    if isinstance(latency, float) and latency * 12 > lease.total_seconds():
        return bad(
            f"jobhandle_lease is {shown}, and the database takes {format_duration(latency)} to answer: "
            "live workers will be declared lost",
            "increase jobhandle_lease",
        )
    if lease < SHORT_LEASE:
        return warn(
            f"jobhandle_lease is {shown}: a machine that pauses this long loses its jobs",
            "set jobhandle_lease = 60, except in tests",
        )
    recovery = format_duration(lease * 2)
    return ok(
        f"jobhandle_lease is {shown}: jobs of a lost worker are recovered within {recovery} and a sweep"
    )


def prefetch(deployment: Deployment) -> Finding:
    """Check how many messages a busy worker reserves."""
    multiplier = deployment.conf.worker_prefetch_multiplier
    republish_after = format_duration(deployment.settings.republish_after)
    if multiplier == 1:
        return ok("worker_prefetch_multiplier is 1: a worker reserves one message for each process")
    reserved = f"{multiplier} messages for each process" if multiplier else "any number of messages"
    message = (
        f"a busy worker reserves {reserved}; an idle worker gets such a job only when it is published again, "
        f"after jobhandle_republish_after ({republish_after})"
    )
    next_step = "set worker_prefetch_multiplier = 1 if tasks take seconds or more"
    return ok(message, next_step) if multiplier else warn(message, next_step)


def result_backend(deployment: Deployment) -> Finding:
    """Check that the result backend, if there is one, answers; jobs do not need it."""
    if not deployment.conf.result_backend:
        return ok("no result_backend: results of jobs are in their rows")
    error = deployment.backend
    name = type(deployment.app.backend).__name__
    if error is not None:
        return warn(
            f"the result backend ({name}) does not answer ({error}): workers wait for it after each task",
            "set result_backend = None if plain tasks do not use it; results of jobs are in their rows",
        )
    return ok(f"the result backend ({name}) answers; results of jobs are in their rows as well")


def serializers(deployment: Deployment) -> Iterator[Finding]:
    """Check that workers accept the jobs' content type, and none that executes code."""
    try:
        accepted = prepare_accept_content(deployment.conf.accept_content or []) or set()
    except Exception as error:
        yield unknown(f"accept_content is invalid: {error}", "set accept_content = ['json']")
        return
    signed = deployment.conf.task_serializer == "auth"
    content_type, name = (SIGNED, "auth") if signed else (JSON, "json")
    next_step = f"set accept_content = ['{name}']"
    if content_type not in accepted:
        yield bad(f"accept_content lacks {name}, the serializer of jobs: workers reject every job", next_step)
    elif PICKLE in accepted:
        yield warn(
            "accept_content has pickle: a client of the broker can execute code in the workers; "
            "jobs do not need it",
            next_step,
        )
    else:
        yield ok(f"jobs are serialized as {name}, which accept_content has")


def events(deployment: Deployment) -> Iterator[Finding]:
    """Check that workers and clients send the events that Flower shows."""
    if deployment.conf.worker_send_task_events:
        yield ok("worker_send_task_events is on: Flower shows jobs")
    else:
        yield warn(
            "worker_send_task_events is off: Flower shows no jobs of workers started without -E",
            "set worker_send_task_events = True",
        )
    if deployment.conf.task_send_sent_event:
        yield ok("task_send_sent_event is on: Flower shows jobs before a worker receives them")
    else:
        yield warn(
            "task_send_sent_event is off: Flower shows a job only after a worker has received it",
            "set task_send_sent_event = True",
        )


def eager(deployment: Deployment) -> Finding:
    """Check that jobs run in workers."""
    if deployment.conf.task_always_eager:
        return bad(
            "task_always_eager is on: submit() runs each job in the caller, without a lease",
            "set task_always_eager = False",
        )
    return ok("task_always_eager is off: jobs run in workers")


def time_limits(deployment: Deployment) -> Finding:
    """Check that the configured pool enforces time limits."""
    name = str(deployment.conf.worker_pool)
    ignored = ignored_time_limits({str(ALIASES.get(name, name)).partition(":")[0]})
    if ignored:
        return warn(
            f"the {name} pool enforces no {' and no '.join(ignored)} time limit of a job or a task",
            "set worker_pool = 'prefork' for jobs with time limits",
        )
    return ok(f"the {name} pool enforces time limits")


def pool(deployment: Deployment) -> Finding:
    """Check that a prefork worker forks its children, which then have the app's jobs."""
    method = getattr(deployment.conf, "worker_pool_start_method", None) or "fork"
    if method != "fork":
        return bad(
            f"worker_pool_start_method is {method}: workers refuse to start",
            "set worker_pool_start_method = 'fork'",
        )
    return ok("worker_pool_start_method is fork")
