"""What is printed at the end. May import run."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from .demonstration import Demonstration
from .files import shown
from .run import Run
from .wishes import CHECKSUM, THUMBNAIL

ERRORS = 20
"""Errors that are listed; there is a row of each."""


def print_table(run: Run, demonstration: Demonstration | None) -> None:
    """Print how many jobs there are by status."""
    counts = run.count()
    if demonstration is not None:
        counts[str(demonstration.status), "demonstration"] += 1
    _print_row("status", ["checksum", "thumbnail", "demonstration"])
    for status in sorted({status for status, _ in counts}, key=_place):
        numbers = [counts[status, task] for task in (CHECKSUM, THUMBNAIL, "demonstration")]
        _print_row(status, [f"{number:,}" if number else "-" for number in numbers])
    if run.earlier:
        print(f"{run.earlier:,} of these were finished by an earlier run, for files that have not changed.")


def _print_row(first: str, others: Sequence[str]) -> None:
    print(f"{first:<15}" + "".join(f"{other:>15}" for other in others))


def _place(status: str) -> int:
    order = ("Finished", "Error", "Cancelled", "Running", "Queued")
    return order.index(status) if status in order else len(order)


def print_failures(run: Run, problems: Sequence[str]) -> None:
    """Print what did not go well, to standard error."""
    failed = run.failed()
    lines = [
        f"job {job.id} {job.status}: {shown(wish.file.name)}: {shown(job.message)}" for wish, job in failed
    ]
    lines += [f"not looked into: {problem}" for problem in problems]
    for line in lines[:ERRORS]:
        print(line, file=sys.stderr)
    if len(lines) > ERRORS:
        print(f"… and {len(lines) - ERRORS:,} more", file=sys.stderr)


def print_manifest(folder: Path, manifest: Path, files: int) -> None:
    """Print where the manifest is, and the command that checks it."""
    name = manifest.name if manifest.parent == folder else str(manifest)
    command = f"cd {shlex.quote(str(folder))} && sha256sum --quiet -c {shlex.quote(name)}"
    print(f"manifest: {shown(str(manifest))}, {files:,} files; check it with")
    print(f"    {shown(command)}")
