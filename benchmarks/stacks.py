"""Profiles a process by py-spy, which is optional, and sums up its samples by package and function."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

OWNERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("PostgreSQL: driver, and waits for the server", ("psycopg/", "psycopg_pool/")),
    ("SQLAlchemy", ("sqlalchemy/",)),
    ("this library's own code", ("jobhandle_celery/",)),
    ("broker: kombu and its drivers, and waits for the broker", ("kombu/", "redis/", "amqp/", "vine/")),
    ("Celery", ("celery/",)),
    ("Celery's process pool", ("billiard/",)),
    ("the benchmark itself", ("benchmarks/",)),
)
"""Owners of samples, by the start of a path. The innermost frame that has an owner decides."""

COMMON_FILES = (
    "schema.py",
    "store/database.py",
    "store/direct_psycopg.py",
    "store/executors.py",
    "store/fork_guard.py",
    "store/retrying.py",
    "store/statements.py",
    "store/transitions.py",
)
"""Files of this library that all operations call: their samples count for the calling function."""

_FRAME = re.compile(r"^(?P<function>.+) \((?P<path>[^()]*?)(?::\d+)?\)$")


@dataclass(frozen=True)
class Stacks:
    """The number of samples of the main thread."""

    owners: Counter[str]
    functions: Counter[str]
    """By the innermost function of this library that is not in `COMMON_FILES`, with all that it calls."""

    @property
    def total(self) -> int:
        """The number of all samples."""
        return self.owners.total()


def record(pid: int, seconds: float, file: Path) -> Stacks:
    """Sample a process 200 times per second for some seconds, waits included.

    Raises:
        ImportError: py-spy is not installed.
        RuntimeError: py-spy has failed; the message has the end of its output.
    """
    program = shutil.which("py-spy", path=os.pathsep.join((str(Path(sys.executable).parent), os.defpath)))
    if program is None:
        raise ImportError("py-spy")
    options = ["--rate", "200", "--idle", "--threads", "--format", "raw", "--output", str(file)]
    command = [program, "record", "--pid", str(pid), "--duration", f"{seconds:g}", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"py-spy: {done.stderr.strip()[-500:]}")
    return sum_up(file.read_text())


def sum_up(raw: str) -> Stacks:
    """Sum up the output of py-spy: a line per stack, its frames from the outermost on, then its count."""
    owners: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [found.groupdict() for frame in stack.split(";") if (found := _FRAME.match(frame))]
        if "MainThread" not in stack.split(";")[0] or not count.isdigit():
            continue
        owners[_owner([frame["path"] for frame in frames])] += int(count)
        ours = [frame for frame in frames if frame["path"].startswith("jobhandle_celery/")]
        ours = [frame for frame in ours if not frame["path"].endswith(COMMON_FILES)] or ours
        if ours:
            path = ours[-1]["path"].removeprefix("jobhandle_celery/")
            functions[f"`{ours[-1]['function']}` ({path})"] += int(count)
    return Stacks(owners, functions)


def _owner(paths: list[str]) -> str:
    for path in reversed(paths):
        for owner, beginnings in OWNERS:
            if path.startswith(beginnings):
                return owner
    return "other"
