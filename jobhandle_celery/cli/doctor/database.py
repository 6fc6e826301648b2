"""Checks of the database: reachable, migrated, durable, in time, swept."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from ...errors import UPGRADE_HINT, ConfigurationError, SchemaError
from ...migrations import REVISIONS
from ..formatting import format_duration
from .findings import Deployment, Finding, bad, ok, unknown, warn

SLOW = 0.25
"""Seconds for a round trip; a claim takes several."""

SMALL_OFFSET, LARGE_OFFSET = timedelta(seconds=2), timedelta(minutes=1)
"""Differences of two clocks: below the first is OK, above the second is BAD."""

_DURABLE = {
    "fsync": {"on"},
    "synchronous_commit": {"on", "local", "remote_write", "remote_apply"},
    "full_page_writes": {"on"},
    "innodb_flush_log_at_trx_commit": {"1"},
}
"""The values with which a commit survives a crash of the database's machine."""


def reachable(deployment: Deployment) -> Finding:
    """Check that the database answers, and how fast."""
    latency = deployment.database
    if isinstance(latency, SchemaError):
        return ok("the database answers")
    if isinstance(latency, ConfigurationError):
        return bad(str(latency), "correct jobhandle_database_url")
    if isinstance(latency, Exception):
        return bad(
            str(latency), "check jobhandle_database_url and the server; no job starts until it answers"
        )
    message = f"the database ({deployment.store.database.dialect}) answers in {latency * 1000:.1f} ms"
    if latency > SLOW:
        return warn(message, "use a database near the workers: each claim takes several round trips")
    return ok(message)


def schema(deployment: Deployment) -> Finding:
    """Check that the tables have the revision of this version."""
    if isinstance(deployment.database, SchemaError):
        problem = str(deployment.database).removesuffix(UPGRADE_HINT).rstrip(". ")
        return bad(problem, "celery -A app jobs upgrade")
    if isinstance(deployment.database, Exception):
        return unknown("skipped: the database does not answer", "see database")
    return ok(f"the tables are at revision {REVISIONS[-1]}, which this version needs")


def durability(deployment: Deployment) -> Iterator[Finding]:
    """Check that a commit survives a crash."""
    settings = deployment.store.diagnostics.durability()
    unsafe = {name: value for name, value in settings.items() if value not in _DURABLE[name]}
    for name, value in unsafe.items():
        safe = "1" if name.startswith("innodb") else "on"
        yield warn(
            f"{name} is {value}: a crash of the database's machine may lose jobs", f"set {name} = {safe}"
        )
    if not unsafe:
        described = ", ".join(f"{name} {value}" for name, value in settings.items())
        yield ok(f"commits survive a crash ({described or 'synchronous = full, set by the library'})")


def one_machine(deployment: Deployment) -> Finding:
    """Check that a SQLite file is used on one machine only."""
    if deployment.store.database.dialect != "sqlite":
        return ok("a database server: workers may run on any machine")
    hosts = sorted({worker.name.rpartition("@")[2] for worker in deployment.workers})
    if len(hosts) > 1:
        return bad(
            f"SQLite is used by workers on several machines: {', '.join(hosts)}",
            "use a database server such as PostgreSQL",
        )
    return ok("SQLite, used on one machine")


def clocks(deployment: Deployment) -> Finding:
    """Compare this machine's clock with the database's, by which jobs are scheduled."""
    before = datetime.now(UTC)
    database_time = deployment.store.stats.now()
    after = datetime.now(UTC)
    if before - SMALL_OFFSET <= database_time <= after + SMALL_OFFSET:
        return ok("this machine's clock agrees with the database's")
    offset = database_time - before if database_time < before else database_time - after
    relation = "ahead of" if offset < timedelta(0) else "behind"
    message = (
        f"this machine's clock is {format_duration(abs(offset))} {relation} the database's, "
        "by which jobs are scheduled"
    )
    next_step = "run NTP on both, or give scheduled_for as a timedelta, which the database's clock resolves"
    return bad(message, next_step) if abs(offset) > LARGE_OFFSET else warn(message, next_step)


def sweeps(deployment: Deployment) -> Finding:
    """Check that passes of the sweeper follow one another."""
    passes, settings = deployment.store.stats.passes(), deployment.settings
    effect = "jobs with lost messages or lost workers are not recovered"
    next_step = "start a worker, or run `celery -A app jobs sweep --forever` as a process of its own"
    if passes.since_last is None or passes.unbroken is None:
        return bad(f"no sweep has ever run: {effect}", next_step)
    since_last = format_duration(passes.since_last)
    if passes.since_last > max(settings.pass_interval * 10, settings.unbroken):
        return bad(f"the last sweep was {since_last} ago: {effect}", next_step)
    if passes.unbroken < settings.lease:
        return ok(
            f"sweeps are uninterrupted for {format_duration(passes.unbroken)}; lost-worker detection starts "
            f"after {format_duration(settings.lease)} of uninterrupted sweeps"
        )
    return ok(f"the last sweep was {since_last} ago; lost-worker detection is active")
