"""``doctor``: everything that can be asked, and which promise it keeps or breaks. May import desk and below.

`CHECKS` is the table; a check is a small function from a `Patient` to what it finds.
"""

import sys

import click

from ..context import Desk, verb
from ..exit_codes import Exit
from ..output.layout import Line, Table
from . import broker, configuration, database, stuck, workers
from .findings import PROMISES, Check, Finding, Level, Patient

CHECKS = (
    Check("database", (7,), database.reach),
    Check("schema", (7,), database.schema),
    Check("durability", (1, 2), database.durability, needs=("database",)),
    Check("one machine", (3,), database.one_machine, needs=("database",)),
    Check("clocks", (5,), database.clocks, needs=("database",)),
    Check("lease", (3, 4), configuration.lease),
    Check("sweeps", (1, 4), database.sweeps, needs=("database",)),
    Check("broker", (1,), broker.reach),
    Check("visibility_timeout", (3,), broker.visibility),
    Check("acks_late", (1, 3), broker.acks_late),
    Check("transport options", (1,), broker.transport_options),
    Check("publisher confirms", (1,), broker.confirms),
    Check("eviction", (1,), broker.eviction, needs=("broker",)),
    Check("prefetch", (1,), configuration.prefetch),
    Check("result backend", (6,), configuration.results),
    Check("serializers", (1,), configuration.serializers),
    Check("events", (), configuration.events),
    Check("eager", (4,), configuration.eager),
    Check("pool", (2, 3), configuration.pool),
    Check("time limits", (), configuration.limits),
    Check("workers", (1,), workers.alive, needs=("database",)),
    Check("lost workers", (4,), workers.lapsed, needs=("database",)),
    Check("worker step", (2, 3, 4, 6), workers.step, needs=("database", "broker")),
    Check("internal errors", (1, 4), workers.check_internal_errors, needs=("broker",)),
    Check("tasks", (1,), workers.tasks, needs=("database", "broker")),
    Check("queues", (1,), workers.queues, needs=("database", "broker")),
    Check("stuck jobs", (1, 4), stuck.stuck, needs=("database",)),
    Check("held jobs", (1,), stuck.held, needs=("database",)),
)
"""All checks, in the order in which they are told: what others rest on first."""


@verb(
    "doctor",
    examples={
        "doctor": "",
        "doctor --quiet": "what is not OK alone",
        "doctor --strict": "for a deployment: a warning is an error",
        "doctor --json": "",
    },
    exits="0 nothing BAD, 1 something BAD (with --strict: or WARN), 2 wrong input.",
)
@click.option("--quiet", is_flag=True, help="Leave out what is OK.")
@click.option("--strict", is_flag=True, help="Exit with 1 for a WARN, too.")
def doctor(desk: Desk, quiet: bool, strict: bool) -> None:
    """Say which promise each setting keeps or breaks.

    It connects to everything, and says what to set. OK: the promises beside it are kept. WARN: kept, and it
    could be better. BAD: one is broken. UNKNOWN: the check could not be made. Settings are those that this
    process reads; workers may have been started with others.
    """
    desk.expect_jobs()
    patient = Patient(desk)
    patient.begin()
    try:
        found = [(check, finding) for check in CHECKS for finding in check.findings(patient)]
    finally:
        patient.close()
    shown = [pair for pair in found if not quiet or pair[1].level is not Level.OK]
    if desk.out.json:
        for check, finding in shown:
            desk.out.document(document(check, finding))
    else:
        _show(desk, shown, [finding.level for _, finding in found])
    bad = {Level.BAD, Level.WARN} if strict else {Level.BAD}
    sys.exit(Exit.BAD if any(finding.level in bad for _, finding in found) else Exit.OK)


def document(check: Check, finding: Finding) -> dict[str, object]:
    """Return the JSON of a finding."""
    return {
        "check": check.name,
        "level": str(finding.level),
        "promises": list(check.promises),
        "says": finding.says,
        "set": finding.set or None,
    }


def _show(desk: Desk, shown: list[tuple[Check, Finding]], levels: list[Level]) -> None:
    rows = [
        [
            str(finding.level),
            check.name,
            ",".join(map(str, check.promises)),
            f"{finding.says}. Set: {finding.set}" if finding.set else finding.says,
        ]
        for check, finding in shown
    ]
    counted = ", ".join(f"{levels.count(level)} {level}" for level in Level)
    promises = "; ".join(f"{number} {promise}" for number, promise in PROMISES.items())
    table = [Table(("LEVEL", "CHECK", "PROMISE", "SAYS"), rows)] if rows else []
    desk.out.show(*table, Line(f"{counted}. Promises: {promises}."))
