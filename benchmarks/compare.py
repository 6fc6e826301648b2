"""Compares this checkout with another: ``python -m benchmarks.compare FOLDER``.

A process of each checkout, with a database of its own on the same servers, submits, claims and finishes jobs
that have no needs, interleaved. The table has the processor time of the process and the elapsed time, and the
processor time of PostgreSQL for all, with the reads between them. The store of the other checkout needs the
same interface.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import redis

from tests.reaper import Reaper

from . import report
from .arithmetic import ratios, summary
from .harness import Harness
from .peers import Sandbox
from .processes import ROOT
from .progress import Progress
from .servers import Servers

PROGRAM = Path(__file__).with_name("timed_checkout.py")
Times = dict[str, float]
"""Microseconds per job, by what they are the time of."""


def main(arguments: Sequence[str]) -> None:
    """Measure both checkouts and print the table."""
    parser = argparse.ArgumentParser("python -m benchmarks.compare", description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="another checkout of this project")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--jobs", type=int, default=200, help="jobs per round")
    options = parser.parse_args(arguments)
    reaper, progress = Reaper(), Progress(["compare"])
    servers = Servers(reaper)
    harness = Harness(servers, reaper, progress, rounds=options.rounds)
    try:
        with ExitStack() as stack:
            measurements = {}
            for label, folder in (("other", options.folder.resolve()), ("this", ROOT)):
                sandbox = stack.enter_context(harness.sandbox(label))
                checkout = stack.enter_context(Checkout(folder, sandbox))
                measurements[label] = _measurement(servers, checkout, options.jobs)
            measured = harness.measure(measurements, options.rounds)
    finally:
        progress.close()
        servers.close()
        reaper.close()
    print(to_table(measured["this"], measured["other"]))


def _measurement(servers: Servers, checkout: "Checkout", jobs: int) -> Callable[[], Times]:
    def measure() -> Times:
        before = servers.postgresql_processor_time()
        times = checkout.time(jobs)
        spent = servers.postgresql_processor_time() - before
        return times | {"PostgreSQL, processor time": spent * 1e6 / jobs}

    return measure


class Checkout:
    """A process that runs the library of one checkout."""

    def __init__(self, folder: Path, sandbox: Sandbox) -> None:
        """Start the process.

        Raises:
            RuntimeError: It runs another library than that of the folder.
        """
        self._sandbox = sandbox
        command = [sys.executable, "-P", str(PROGRAM), sandbox.broker_url, sandbox.database_url]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=sandbox.folder,
            env={**os.environ, "PYTHONPATH": str(folder)},
        )
        sandbox.reaper.watch(self._process.pid)
        library = self._answer()
        if not library.startswith(f"{folder}{os.sep}"):
            raise RuntimeError(f"the process of {folder} runs {library!r}")

    def __enter__(self) -> "Checkout":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def time(self, jobs: int) -> Times:
        """Return the times of each operation for some jobs."""
        assert self._process.stdin is not None
        print(jobs, file=self._process.stdin, flush=True)
        times: Times = json.loads(self._answer())
        with redis.Redis.from_url(self._sandbox.broker_url) as client:
            client.delete("celery")
        return times

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        if not answer:
            raise RuntimeError("the process of a checkout has ended: see its error above")
        return answer


def to_table(this: Sequence[Times], other: Sequence[Times]) -> str:
    """Return a table of the medians of both checkouts, and of the ratios within each round."""
    rows = [["operation", "other checkout", "this checkout", "ratio (median, quartiles)"]]
    for label in this[0]:
        ours, theirs = ([times[label] for times in rounds] for rounds in (this, other))
        ratio = summary(ratios(ours, theirs))
        rows.append(
            [
                label,
                f"{report.number(summary(theirs).median)} µs per job",
                f"{report.number(summary(ours).median)} µs per job",
                f"{ratio.median:.2f} × ({ratio.low:.2f} – {ratio.high:.2f})",
            ]
        )
    return report.table(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
