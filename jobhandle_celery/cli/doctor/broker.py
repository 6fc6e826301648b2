"""Checks of the broker and its transport."""

from collections.abc import Iterator
from typing import Any

from ..formatting import format_duration
from .findings import Deployment, Finding, bad, ok, warn

VISIBILITY_TIMEOUT = 3600.0
"""Seconds: kombu's default for Redis."""

CONSUMER_TIMEOUT = 1800.0
"""Seconds: RabbitMQ's default. A message unacknowledged for longer closes the channel."""


def reachable(deployment: Deployment) -> Finding:
    """Check that the broker answers, and how fast."""
    if isinstance(deployment.broker, str):
        return bad(
            f"the broker does not answer ({deployment.broker}); jobs are kept, and none starts",
            "check broker_url and the server",
        )
    return ok(f"the broker ({deployment.driver}) answers in {deployment.broker * 1000:.1f} ms")


def visibility_timeout(deployment: Deployment) -> Finding:
    """Check that a message is not redelivered while its job still runs."""
    if deployment.driver not in ("redis", "sqs"):
        return ok(f"{deployment.driver} has no visibility_timeout")
    timeout = deployment.transport_options.get("visibility_timeout", VISIBILITY_TIMEOUT)
    option = "broker_transport_options['visibility_timeout']"
    if not isinstance(timeout, (int, float)) or timeout <= 0:
        return bad(f"visibility_timeout is {timeout!r}", f"set {option} = {VISIBILITY_TIMEOUT:g}")
    lease, limit = deployment.settings.lease.total_seconds(), _longest_limit(deployment)
    shown = format_duration(timeout)
    redelivery = "is redelivered to a second worker; the claim rejects a job's, a plain task runs twice"
    if timeout < lease:
        return warn(
            f"visibility_timeout ({shown}) is below the lease ({format_duration(lease)}): "
            f"a message {redelivery}",
            f"set {option} = {VISIBILITY_TIMEOUT:g}, or longer than any task",
        )
    if deployment.late_ack_tasks and (limit is None or limit > timeout):
        longest = "have no time limit" if limit is None else f"may take {format_duration(limit)}"
        return warn(
            f"tasks with acks_late {longest}; after visibility_timeout ({shown}) a message {redelivery}",
            "set visibility_timeout above the longest task, or task_time_limit below it",
        )
    return ok(f"visibility_timeout ({shown}) is above the lease ({format_duration(lease)})")


def _longest_limit(deployment: Deployment) -> float | None:
    """Return the longest time limit of the tasks with acks_late; None if one has none."""
    tasks: Any = [deployment.app.tasks[name] for name in deployment.late_ack_tasks]
    limits = [task.time_limit or deployment.conf.task_time_limit for task in tasks]
    return max(limits, default=0.0) if all(limits) else None


def transport_options(deployment: Deployment) -> Finding:
    """Look for options that the transport ignores: a misspelt one has no effect."""
    options = sorted(deployment.transport_options)
    if not options:
        return ok("no broker_transport_options: kombu's defaults")
    known = _known_options(deployment)
    ignored = [name for name in options if known and name not in known]
    if ignored:
        return warn(
            f"broker_transport_options has {', '.join(ignored)}, "
            f"which the {deployment.driver} transport ignores",
            f"remove it, or use one of {', '.join(sorted(known))}",
        )
    return ok(f"broker_transport_options: {', '.join(options)}")


_KOMBU_OPTIONS = {"max_retries", "interval_start", "interval_step", "interval_max", "errback", "callback"}
"""Options that kombu reads itself, for every transport."""

_OTHER_OPTIONS = {
    "master_name",
    "sentinel_kwargs",
    "min_other_nodes",
    "sep",
    "username",
    "password",
    "polling_interval",
}
"""Options that transports read outside of `from_transport_options`."""


def _known_options(deployment: Deployment) -> set[str]:
    channel = getattr(deployment.app.connection_for_write().transport, "Channel", None)
    listed = getattr(channel, "from_transport_options", ())
    # Other transports pass all options on to their drivers.
    return set(listed) | _KOMBU_OPTIONS | _OTHER_OPTIONS if listed and deployment.driver == "redis" else set()


def publisher_confirms(deployment: Deployment) -> Finding:
    """Check that the broker confirms each publish."""
    if deployment.driver != "amqp":
        return ok(f"{deployment.driver} answers each publish")
    if deployment.transport_options.get("confirm_publish"):
        return ok("each publish is confirmed")
    return warn(
        "messages of jobs are confirmed; those of plain tasks are not, and can be lost without an error",
        "set broker_transport_options['confirm_publish'] = True",
    )


def eviction(deployment: Deployment) -> Iterator[Finding]:
    """Check that Redis does not evict queues when its memory is full."""
    if deployment.driver != "redis":
        yield ok(f"{deployment.driver} does not evict messages")
        return
    client = deployment.connection.default_channel.client
    policy = client.info("memory").get("maxmemory_policy", "?")
    if str(policy).startswith("allkeys"):
        yield warn(
            f"Redis has maxmemory-policy {policy} and evicts queues when its memory is full: "
            "jobs are published again after jobhandle_republish_after, plain tasks are lost",
            "set maxmemory-policy noeviction in Redis",
        )
    else:
        yield ok(f"Redis has maxmemory-policy {policy} and evicts no queue")


def acks_late(deployment: Deployment) -> Finding:
    """Check what happens to a message whose worker dies."""
    count = len(deployment.late_ack_tasks)
    if not count:
        return ok("tasks acknowledge early; a message lost with its worker is published again by the sweeper")
    message = f"{count} tasks have acks_late; the claim rejects a redelivered message"
    limit = _longest_limit(deployment)
    if deployment.driver == "amqp" and (limit is None or limit > CONSUMER_TIMEOUT):
        return warn(
            f"{message}; RabbitMQ closes the channel of a task that runs longer than its consumer_timeout "
            f"({format_duration(CONSUMER_TIMEOUT)} by default), which ends the worker's other tasks, too",
            "set task_acks_late = False, with which no job is lost, or a longer consumer_timeout in RabbitMQ",
        )
    return ok(message)


def worker_lost(deployment: Deployment) -> Finding:
    """Check that no task relies on Celery's options for a lost worker, which have no effect on its jobs."""
    options = ("reject_on_worker_lost", "retry_on_worker_lost")  # the second from Celery 5.7 on
    tasks = [
        task
        for name, task in sorted(deployment.app.tasks.items())
        if not name.startswith("celery.") and getattr(task, "max_attempts", None) is None
    ]
    used = [option for option in options if any(getattr(task, option, None) for task in tasks)]
    if not used:
        return ok("no task has reject_on_worker_lost without max_attempts")
    names = [task.name for task in tasks if any(getattr(task, option, None) for option in used)]
    return warn(
        f"{len(names)} tasks, such as {names[0]}, have {' or '.join(used)} without max_attempts: it has no "
        "effect on jobs, whose bodies are not started again when their worker is lost",
        "give tasks that may run twice max_attempts=2, and the others max_attempts=1",
    )
