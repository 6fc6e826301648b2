"""Checks of the database: is it there, does it fit, does it keep what it was given, is it swept?"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from ...errors import UPGRADE_HINT, ConfigurationError, SchemaError
from ...migrations import REVISIONS
from ..formatting import span
from .findings import Finding, Patient, bad, ok, unknown, warn

SLOW = 0.25
"""Seconds for a round trip; a claim takes some."""

DRIFT, FAR_OFF = timedelta(seconds=2), timedelta(minutes=1)
"""How far the clocks of two machines may be apart: of no consequence, and of some."""

_SAFE = {
    "fsync": {"on"},
    "synchronous_commit": {"on", "local", "remote_write", "remote_apply"},
    "full_page_writes": {"on"},
    "innodb_flush_log_at_trx_commit": {"1"},
}
"""The values with which a commit outlives a crash of the database's machine."""


def reach(patient: Patient) -> Finding:
    """Look whether the database answers, and how fast."""
    took = patient.database
    if isinstance(took, SchemaError):
        return ok("the database answers")
    if isinstance(took, ConfigurationError):
        return bad(str(took), "jobhandle_database_url")
    if isinstance(took, Exception):
        return bad(
            str(took), "jobhandle_database_url, or see why the database is away; no job starts until then"
        )
    said = f"the database ({patient.store.dialect}) answers in {took * 1000:.1f} ms"
    if took > SLOW:
        return warn(said, "a database near the workers: each claim takes several such round trips")
    return ok(said)


def schema(patient: Patient) -> Finding:
    """Look whether the tables fit this code."""
    if isinstance(patient.database, SchemaError):
        said = str(patient.database).removesuffix(UPGRADE_HINT).rstrip(". ")
        return bad(said, "celery -A app jobs upgrade")
    if isinstance(patient.database, Exception):
        return unknown("not looked at: the database cannot be asked")
    return ok(f"the tables fit this code, revision {REVISIONS[-1]}")


def durability(patient: Patient) -> Iterator[Finding]:
    """Look whether a commit outlives a crash."""
    found = patient.store.durability()
    unsafe = {name: value for name, value in found.items() if value not in _SAFE[name]}
    for name, value in unsafe.items():
        best = "1" if name.startswith("innodb") else "on"
        yield warn(f"{name} is {value}: a crash of the database's machine may lose jobs", f"{name} = {best}")
    if not unsafe:
        kept = ", ".join(f"{name} {value}" for name, value in found.items()) or "synchronous full, by us"
        yield ok(f"what is committed outlives a crash ({kept})")


def one_machine(patient: Patient) -> Finding:
    """Look whether a database in a file is asked from one machine alone."""
    if patient.store.dialect != "sqlite":
        return ok("a database server: workers may be on any machine")
    hosts = sorted({one.name.rpartition("@")[2] for one in patient.workers})
    if len(hosts) > 1:
        return bad(f"SQLite, and workers on {', '.join(hosts)}", "a database server: PostgreSQL")
    return ok("SQLite: for workers on this one machine")


def clocks(patient: Patient) -> Finding:
    """Look how far this machine's clock is from the database's, which all times are measured by."""
    before = datetime.now(UTC)
    there = patient.store.now()
    after = datetime.now(UTC)
    if before - DRIFT <= there <= after + DRIFT:
        return ok("this machine's clock agrees with the database's")
    off = there - before if there < before else there - after
    where = "ahead of" if off < timedelta(0) else "behind"
    said = f"this machine's clock is {span(abs(off))} {where} the database's; jobs start by the database's"
    set_ = "NTP on both; or give scheduled_for as a timedelta, which counts from the database's clock"
    return bad(said, set_) if abs(off) > FAR_OFF else warn(said, set_)


def sweeps(patient: Patient) -> Finding:
    """Look whether anybody sweeps."""
    passes, interval = patient.store.passes(), patient.settings.pass_interval
    remedy = "start a worker, or `celery -A app jobs sweep --forever` as a process of its own"
    if passes.since_last is None or passes.unbroken is None:
        return bad("nobody has ever swept: lost messages and lost workers stay lost", remedy)
    if passes.since_last > max(interval * 10, patient.settings.unbroken):
        return bad(
            f"nobody has swept for {span(passes.since_last)}: lost messages and workers stay lost", remedy
        )
    if passes.unbroken < patient.settings.lease:
        return ok(
            f"sweeps since {span(passes.unbroken)}; leases are believed after {span(patient.settings.lease)}"
        )
    return ok(f"the last pass was {span(passes.since_last)} ago, they follow closely")
