"""The output at the end of a run."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from .files import printable
from .plan import CHECKSUM, THUMBNAIL
from .run import Run

MAX_ERRORS = 20
"""Errors listed; all are in the database."""

_ORDER = ("Finished", "Error", "Cancelled", "Running", "Queued")


def print_counts(run: Run) -> None:
    """Print the number of jobs by status and task."""
    counts = run.count()
    statuses = {status for status, _ in counts}
    print(f"{'':<15}{'checksum':>12}{'thumbnail':>12}")
    for status in [*(name for name in _ORDER if name in statuses), *sorted(statuses.difference(_ORDER))]:
        numbers = [counts[status, task] for task in (CHECKSUM, THUMBNAIL)]
        print(f"{status:<15}" + "".join(f"{number or '-':>12}" for number in numbers))
    if run.finished_earlier:
        print(f"{run.finished_earlier:,} of these finished in an earlier run; their files have not changed.")


def print_failures(run: Run, problems: Sequence[str]) -> None:
    """Print the jobs that failed and the files that could not be read, to standard error."""
    lines = [
        f"job {job.id} {job.status}: {printable(planned.file.name)}: {printable(job.message)}"
        for planned, job in run.failed()
    ]
    lines += [f"skipped: {problem}" for problem in problems]
    for line in lines[:MAX_ERRORS]:
        print(line, file=sys.stderr)
    if len(lines) > MAX_ERRORS:
        print(f"… and {len(lines) - MAX_ERRORS:,} more", file=sys.stderr)


def print_manifest(folder: Path, manifest: Path, files: int) -> None:
    """Print the path of the manifest, and the command that checks it."""
    name = manifest.name if manifest.parent == folder else str(manifest)
    command = f"cd {shlex.quote(str(folder))} && sha256sum --quiet -c {shlex.quote(name)}"
    print(f"\nThe manifest of {files:,} files is {printable(str(manifest))}. Check it:")
    print(f"    {printable(command)}")


def print_next_steps(job_id: int) -> None:
    """Print commands that show the jobs; for the database in the current directory."""
    celery = f"{shlex.quote(sys.executable)} -m celery -A tasks jobs"
    print(f"\nThe jobs stay in the database. Look at them:\n    {celery} list\n    {celery} show {job_id}")
