"""Where a process spends its time, by py-spy (optional), summed up by whose code it is."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

OWNERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("PostgreSQL: driver, and the wait for the server", ("psycopg/", "psycopg_pool/")),
    ("SQLAlchemy", ("sqlalchemy/",)),
    ("this library's own code", ("jobhandle_celery/",)),
    ("broker: kombu and its drivers, and the wait for it", ("kombu/", "redis/", "amqp/", "vine/")),
    ("Celery", ("celery/",)),
    ("Celery's process pool", ("billiard/",)),
    ("the benchmark itself", ("benchmarks/",)),
)
"""By the path of the innermost frame that is one of theirs: the standard library's are their callers'."""

PLUMBING = ("store/moves.py", "store/once.py", "store/door.py", "store/forks.py", "schema.py")
"""Files of this library through which every verb goes: their time is the verb's that calls them."""

_FRAME = re.compile(r"^(?P<function>.+) \((?P<path>[^()]*?)(?::\d+)?\)$")


@dataclass(frozen=True)
class Stacks:
    """Samples of one thread."""

    owners: Counter[str]
    verbs: Counter[str]
    """Of the samples in or below this library, by its innermost function that is not plumbing."""

    @property
    def total(self) -> int:
        """How many samples there are."""
        return self.owners.total()


def record(pid: int, seconds: float, file: Path) -> Stacks:
    """Look at a process 200 times a second, waits included, for so many seconds.

    Raises:
        ImportError: py-spy is not installed.
        RuntimeError: it could not; with its words.
    """
    program = shutil.which("py-spy", path=os.pathsep.join((str(Path(sys.executable).parent), os.defpath)))
    if program is None:
        raise ImportError("py-spy")
    options = ["--rate", "200", "--idle", "--threads", "--format", "raw", "--output", str(file)]
    command = [program, "record", "--pid", str(pid), "--duration", f"{seconds:g}", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"py-spy: {done.stderr.strip()[-500:]}")
    return summed(file.read_text())


def summed(raw: str) -> Stacks:
    """Sum up what py-spy writes: a line a stack, its frames from the outermost on, then how often."""
    owners: Counter[str] = Counter()
    verbs: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [found.groupdict() for frame in stack.split(";") if (found := _FRAME.match(frame))]
        if "MainThread" not in stack.split(";")[0] or not count.isdigit():
            continue
        owners[_owner([frame["path"] for frame in frames])] += int(count)
        ours = [frame for frame in frames if frame["path"].startswith("jobhandle_celery/")]
        ours = [frame for frame in ours if not frame["path"].endswith(PLUMBING)] or ours
        if ours:
            verbs[f"`{ours[-1]['function']}` ({ours[-1]['path'].removeprefix('jobhandle_celery/')})"] += int(
                count
            )
    return Stacks(owners, verbs)


def _owner(paths: list[str]) -> str:
    for path in reversed(paths):
        for owner, beginnings in OWNERS:
            if path.startswith(beginnings):
                return owner
    return "other"
