"""Checks of the broker and of the way to it."""

from collections.abc import Iterator
from typing import Any

from ..formatting import span
from .findings import Finding, Patient, bad, ok, warn

VISIBILITY = 3600.0
"""Seconds: kombu's own visibility timeout."""

CONSUMER_TIMEOUT = 1800.0
"""Seconds: RabbitMQ closes the channel of a message that was not acknowledged for so long."""


def reach(patient: Patient) -> Finding:
    """Look whether the broker answers, and how fast."""
    if isinstance(patient.broker, str):
        return bad(
            f"the broker does not answer ({patient.broker}); no job is lost, and none starts",
            "broker_url, or see why the broker is away",
        )
    return ok(f"the broker ({patient.driver}) answers in {patient.broker * 1000:.1f} ms")


def visibility(patient: Patient) -> Finding:
    """Look whether a message comes back while its job still runs."""
    if patient.driver not in ("redis", "sqs"):
        return ok(f"{patient.driver} has none")
    given = patient.options.get("visibility_timeout", VISIBILITY)
    if not isinstance(given, (int, float)) or given <= 0:
        return bad(f"visibility_timeout is {given!r}", f"visibility_timeout = {VISIBILITY:g}")
    lease, limit = patient.settings.lease.total_seconds(), _longest(patient)
    again = "is given to a second worker, which the claim refuses; a plain task with acks_late runs twice"
    if given < lease:
        return warn(
            f"visibility_timeout ({span(given)}) is below the lease ({span(lease)}): a message {again}",
            f"broker_transport_options['visibility_timeout'] = {VISIBILITY:g}, or longer than any task",
        )
    if patient.late_acks and (limit is None or limit > given):
        longest = "have no time limit" if limit is None else f"may take {span(limit)}"
        return warn(
            f"tasks with acks_late {longest}; after visibility_timeout ({span(given)}) a message {again}",
            "visibility_timeout above the longest task, or task_time_limit below it",
        )
    return ok(f"visibility_timeout ({span(given)}) is above the lease ({span(lease)})")


def _longest(patient: Patient) -> float | None:
    tasks: Any = [patient.app.tasks[name] for name in patient.late_acks]
    limits = [task.time_limit or patient.conf.task_time_limit for task in tasks]
    return max(limits, default=0.0) if all(limits) else None


def transport_options(patient: Patient) -> Finding:
    """Look for options that the transport does not know: a misspelt one does nothing."""
    given = sorted(patient.options)
    if not given:
        return ok("no broker_transport_options: kombu's own")
    known = _known_options(patient)
    strange = [name for name in given if known and name not in known]
    if strange:
        return warn(
            f"broker_transport_options has {', '.join(strange)}, which {patient.driver} does not know",
            f"one of {', '.join(sorted(known))}",
        )
    return ok(f"broker_transport_options: {', '.join(given)}")


_ANYWHERE = {"max_retries", "interval_start", "interval_step", "interval_max", "errback", "callback"}
"""What kombu reads itself, whatever the transport."""

_BEYOND = {
    "master_name",
    "sentinel_kwargs",
    "min_other_nodes",
    "sep",
    "username",
    "password",
    "polling_interval",
}
"""What the transports read elsewhere."""


def _known_options(patient: Patient) -> set[str]:
    channel = getattr(patient.app.connection_for_write().transport, "Channel", None)
    listed = getattr(channel, "from_transport_options", ())
    # A transport without a list takes whatever its driver does.
    return set(listed) | _ANYWHERE | _BEYOND if listed and patient.driver == "redis" else set()


def confirms(patient: Patient) -> Finding:
    """Look whether the broker says that it has a message."""
    if patient.driver != "amqp":
        return ok(f"{patient.driver} answers each publish")
    if patient.options.get("confirm_publish"):
        return ok("publishes are confirmed")
    return warn(
        "jobs' messages are confirmed always; plain tasks' are not, and can vanish without an error",
        "broker_transport_options['confirm_publish'] = True",
    )


def eviction(patient: Patient) -> Iterator[Finding]:
    """Look whether Redis throws messages away when its memory is full."""
    if patient.driver != "redis":
        yield ok(f"{patient.driver} keeps its messages")
        return
    client = patient.connection.default_channel.client
    policy = client.info("memory").get("maxmemory_policy", "?")
    if str(policy).startswith("allkeys"):
        yield warn(
            f"Redis evicts by {policy}: queues go when memory is short; "
            "jobs are sent again after the patience, plain tasks are lost",
            "maxmemory-policy noeviction",
        )
    else:
        yield ok(f"Redis evicts no queue ({policy})")


def acks_late(patient: Patient) -> Finding:
    """Look what becomes of a message whose worker dies."""
    late = patient.late_acks
    if not late:
        return ok("messages are acknowledged early; one that dies with its worker is sent again by the sweep")
    said = f"{len(late)} tasks acknowledge late; a message given again is refused by the claim"
    limit = _longest(patient)
    if patient.driver == "amqp" and (limit is None or limit > CONSUMER_TIMEOUT):
        return warn(
            f"{said}; RabbitMQ closes the channel of a body longer than its consumer_timeout "
            f"({span(CONSUMER_TIMEOUT)} by default), and the worker's other bodies are cut off",
            "task_acks_late = False, which loses nothing here; or a longer consumer_timeout in RabbitMQ",
        )
    return ok(said)
