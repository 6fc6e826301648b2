"""Mutation tests: each weakened guard, made in a copy of the code, must make a test fail.

By hand, not in CI, for it takes a while::

    python -m tests.mutants            # all of them
    python -m tests.mutants 7 19       # these
    python -m tests.mutants 0          # the code as it is: no test may fail

Other modules of this package list them. Prints which test caught which, and exits with 1 if one survived.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mutants.groups import GROUPS
from tests.mutants.guards import GUARDS
from tests.mutants.mutant import Mutant
from tests.mutants.publishing import PUBLISHING
from tests.mutants.rules import RULES
from tests.mutants.trees import TREES
from tests.workers import ROOT

LONGEST = 1800
"""Seconds for the tests of one mutant."""
MUTANTS = [*RULES, *GUARDS, *TREES, *GROUPS, *PUBLISHING]

AS_IT_IS = "the code as it is"


def main() -> int:
    """Make the given mutants one after the other; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("numbers", nargs="*", type=int, help="which; all if none are given")
    numbers = parser.parse_args().numbers
    as_expected = True
    if not numbers or 0 in numbers:
        as_expected &= report(0, AS_IT_IS, every_test(), None) == []
    for mutant in MUTANTS:
        if not numbers or mutant.number in numbers:
            as_expected &= bool(report(mutant.number, mutant.reading, mutant.tests, mutant))
    return 0 if as_expected else 1


def every_test() -> str:
    """Return the arguments of pytest for the tests of all mutants."""
    files = sorted({word for mutant in MUTANTS for word in mutant.tests.split() if "/" in word})
    return " ".join(["-m 'not smoke and not flower'", *files])


def report(number: int, reading: str, tests: str, mutant: Mutant | None) -> list[str] | None:
    """Print which tests fail; return them, None if the tests could not be run."""
    try:
        failed = failing(tests, mutant)
        lines = failed or ["no test fails"]
    except AssertionError as error:
        failed, lines = None, [str(error)]
    print(f"{number:>3}  {reading}", *lines, sep="\n      ", flush=True)
    return failed


def failing(tests: str, mutant: Mutant | None) -> list[str]:
    """Run tests in a copy of the tree, with a mutant; return the first that fail.

    Raises:
        AssertionError: the mutant does not fit the code, or the tests could not be run.
    """
    with tempfile.TemporaryDirectory(prefix="jobhandle-mutant-") as folder:
        copy = Path(folder)
        for name in ("jobhandle_celery", "tasks", "tests", "docs", "pyproject.toml", "README.md"):
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy)
        if mutant is not None:
            path, changed = mutant.make()
            (copy / path).write_text(changed)
        command = [sys.executable, "-m", "pytest", "-x", "-q", *shlex.split(tests)]
        # An editable install would find the package in the checkout.
        environment = {**os.environ, "PYTHONPATH": str(copy)}
        run = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=LONGEST, check=False
        )
        failed: list[str] = re.findall(r"^FAILED (.+?)(?: - |$)", run.stdout, re.MULTILINE)
        assert bool(failed) == bool(run.returncode), f"{run.stdout[-3000:]}{run.stderr[-1000:]}"
        return failed


if __name__ == "__main__":
    sys.exit(main())
