"""``python -m benchmarks [NAME…]``: run benchmarks and write the report."""

import argparse
import os
import sys
import time
from collections.abc import Sequence

from tests.reaper import Reaper
from tests.servers import ServerMissing

from . import cases, report
from .harness import Harness
from .progress import Progress
from .result import Result, surroundings
from .servers import Servers


def main(arguments: Sequence[str]) -> int:
    """Run the benchmarks that the command line names; return the exit code."""
    options = _parser().parse_args(arguments)
    names = options.names or list(cases.ALL)
    results = [] if options.report else _measure(names, options.quick, options.rounds)
    if options.quick:
        print(report.sections(results))
        return 0
    report.write(cases.ALL)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", help="one of: " + ", ".join(cases.ALL))
    parser.add_argument(
        "--quick", action="store_true", help="small amounts: checks that it runs, saves nothing"
    )
    parser.add_argument("--rounds", type=int, help="how often each measurement is repeated")
    parser.add_argument("--report", action="store_true", help="only write the report from results/")
    return parser


def _measure(names: Sequence[str], quick: bool, rounds: int | None) -> list[Result]:
    unknown = [name for name in names if name not in cases.ALL]
    if unknown:
        raise SystemExit(f"unknown benchmark {', '.join(unknown)}; choose from {', '.join(cases.ALL)}")
    reaper = Reaper()
    servers = Servers(reaper)
    progress = Progress(list(names))
    harness = Harness(servers, reaper, progress, quick, rounds)
    results = []
    try:
        for name in names:
            progress.begin(name)
            started, load = time.monotonic(), os.getloadavg()[0]
            try:
                result = cases.ALL[name](harness)
            except (ServerMissing, ImportError) as error:
                progress.show(f"skipped: {error}")
                result = Result(name, name, "not run", missing={"this benchmark": str(error)})
            result.quick, result.load = quick, load
            result.seconds = time.monotonic() - started
            result.surroundings = surroundings() | servers.versions()
            results.append(result)
            if not quick:
                result.save()
    finally:
        progress.close()
        servers.close()
        reaper.close()
    return results


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
