"""``doctor``: checks the database, the broker, the configuration, the workers and the jobs.

`CHECKS` lists the checks; each is a function from a `Deployment` to its findings.
"""

import sys

import click

from ..context import CommandContext, command
from ..exit_codes import ExitCode
from ..output.layout import Line, Table
from . import broker, configuration, database, stuck, workers
from .findings import PROMISES, Check, Deployment, Finding, Level

CHECKS = (
    Check("database", (7,), database.reachable),
    Check("schema", (7,), database.schema),
    Check("durability", (1, 2), database.durability, needs=("database",)),
    Check("one machine", (3,), database.one_machine, needs=("database",)),
    Check("clocks", (5,), database.clocks, needs=("database",)),
    Check("settings", (), configuration.settings),
    Check("durable tasks", (), configuration.durable),
    Check("lease", (3, 4), configuration.lease),
    Check("sweeps", (1, 4), database.sweeps, needs=("database",)),
    Check("broker", (1,), broker.reachable),
    Check("visibility_timeout", (3,), broker.visibility_timeout),
    Check("acks_late", (1, 3), broker.acks_late),
    Check("worker lost", (), broker.worker_lost),
    Check("transport options", (1,), broker.transport_options),
    Check("publisher confirms", (1,), broker.publisher_confirms),
    Check("eviction", (1,), broker.eviction, needs=("broker",)),
    Check("prefetch", (1,), configuration.prefetch),
    Check("result backend", (6,), configuration.result_backend),
    Check("serializers", (1,), configuration.serializers),
    Check("events", (), configuration.events),
    Check("eager", (4,), configuration.eager),
    Check("pool", (2, 3), configuration.pool),
    Check("time limits", (), configuration.time_limits),
    Check("workers", (1,), workers.alive, needs=("database",)),
    Check("lost workers", (4,), workers.lost, needs=("database",)),
    Check("worker step", (2, 3, 4, 6), workers.bootstep, needs=("database", "broker")),
    Check("internal errors", (1, 4), workers.check_internal_errors, needs=("broker",)),
    Check("tasks", (1,), workers.tasks, needs=("database", "broker")),
    Check("queues", (1,), workers.queues, needs=("database", "broker")),
    Check("stuck jobs", (1, 4), stuck.stuck, needs=("database",)),
    Check("held jobs", (1,), stuck.held, needs=("database",)),
)
"""All checks, in the order of the output: a check comes after those that it depends on."""


@command(
    "doctor",
    examples={
        "doctor": "",
        "doctor --quiet": "only what is not OK",
        "doctor --strict": "for a deployment: a warning fails it",
        "doctor --json": "",
    },
    exit_codes="0 nothing BAD, 1 something BAD (with --strict: or WARN), 2 wrong usage.",
    json='{"check", "level", "promises", "says", "set"} for each finding',
)
@click.option("--quiet", is_flag=True, help="Leave out findings that are OK.")
@click.option("--strict", is_flag=True, help="Exit with 1 for a WARN, too.")
def doctor(context: CommandContext, quiet: bool, strict: bool) -> None:
    """Check whether this deployment keeps the promises.

    Connects to the database, the broker, the result backend and the workers. OK: the promises beside it hold.
    WARN: they hold, and something could be better. BAD: one is broken. UNKNOWN: the check could not be made.
    The configuration is the one that this process reads; workers may run with another.
    """
    context.require_jobs()
    deployment = Deployment(context)
    deployment.connect()
    try:
        findings = [(check, finding) for check in CHECKS for finding in check.run(deployment)]
    finally:
        deployment.close()
    shown = [pair for pair in findings if not quiet or pair[1].level is not Level.OK]
    levels = [finding.level for _, finding in findings]
    if context.output.json:
        for check, finding in shown:
            context.output.document(finding_document(check, finding))
    else:
        _show(context, shown, levels)
    failing = {Level.BAD, Level.WARN} if strict else {Level.BAD}
    sys.exit(ExitCode.FAILED if failing.intersection(levels) else ExitCode.OK)


def finding_document(check: Check, finding: Finding) -> dict[str, object]:
    """Return the JSON document of a finding."""
    return {
        "check": check.name,
        "level": str(finding.level),
        "promises": list(check.promises),
        "says": finding.message,
        "set": finding.next_step or None,
    }


def _show(context: CommandContext, shown: list[tuple[Check, Finding]], levels: list[Level]) -> None:
    rows = [
        [
            str(finding.level),
            check.name,
            ",".join(map(str, check.promises)),
            f"{finding.message}. Next: {finding.next_step}" if finding.next_step else finding.message,
        ]
        for check, finding in shown
    ]
    counts = ", ".join(f"{levels.count(level)} {level}" for level in Level)
    promises = "; ".join(f"{number} {promise}" for number, promise in PROMISES.items())
    table = [Table(("LEVEL", "CHECK", "PROMISES", "FINDING"), rows)] if rows else []
    context.output.show(*table, Line(f"{counts}. Promises: {promises}."))
