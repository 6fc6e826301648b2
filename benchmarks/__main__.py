"""``python -m benchmarks [NAME…]``: measure, and write the report."""

import argparse
import os
import sys
import time
from collections.abc import Sequence

from tests.reaper import Reaper
from tests.servers import ServerMissing

from . import cases, report
from .progress import Progress
from .result import Result, surroundings
from .servers import Servers
from .stage import Stage


def main(words: Sequence[str]) -> int:
    """Run what the command line names; return the exit code."""
    given = _parser().parse_args(words)
    names = given.names or list(cases.ALL)
    if not given.report:
        _measure(names, given.quick, given.rounds)
    report.write(cases.ALL)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", help="one of: " + ", ".join(cases.ALL))
    parser.add_argument("--quick", action="store_true", help="few and small: to see that it works")
    parser.add_argument("--rounds", type=int, help="how often each contestant goes")
    parser.add_argument("--report", action="store_true", help="measure nothing, write the report again")
    return parser


def _measure(names: Sequence[str], quick: bool, rounds: int | None) -> None:
    unknown = [name for name in names if name not in cases.ALL]
    if unknown:
        raise SystemExit(f"no such benchmark: {', '.join(unknown)}; there are: {', '.join(cases.ALL)}")
    reaper = Reaper()
    servers = Servers(reaper)
    progress = Progress(list(names))
    stage = Stage(servers, reaper, progress, quick, rounds)
    try:
        for name in names:
            progress.begin(name)
            begun, load = time.monotonic(), os.getloadavg()[0]
            try:
                result = cases.ALL[name](stage)
            except (ServerMissing, ImportError) as error:
                progress.say(f"left out: {error}")
                result = Result(name, name, "not run", missing={"this benchmark": str(error)})
            result.quick, result.load = quick, load
            result.seconds = time.monotonic() - begun
            result.surroundings = surroundings() | servers.versions()
            result.save()
    finally:
        progress.close()
        servers.close()
        reaper.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
