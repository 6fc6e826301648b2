"""A test of the tests: each looser reading of a rule, made in a copy of the code, must make a test fail.

By hand, not in CI, for it takes a while::

    python -m tests.mutants            # all of them
    python -m tests.mutants 7 19       # these
    python -m tests.mutants 0          # the code as it is: no test may fail

They stand in `rules` and `guards`. Prints which test caught which, and exits with 1 if one survived.
"""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mutants.guards import GUARDS
from tests.mutants.mutant import Mutant
from tests.mutants.rules import RULES
from tests.workers import ROOT

LONGEST = 1800
"""Seconds for the tests of one mutant."""
MUTANTS = [*RULES, *GUARDS]

AS_IT_IS = Mutant(
    0,
    "the code as it is",
    "status.py",
    "class JobStatus",
    "class JobStatus",
    "-m 'not smoke and not flower' "
    + " ".join(sorted({test for mutant in MUTANTS for test in mutant.tests.split() if "/" in test})),
)


def main() -> int:
    """Make the mutants asked for, one after the other; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("numbers", nargs="*", type=int, help="which; all if none are given")
    asked = parser.parse_args().numbers
    as_it_should = True
    for mutant in [AS_IT_IS, *MUTANTS]:
        if asked and mutant.number not in asked:
            continue
        try:
            failed = failing(mutant)
        except AssertionError as error:
            as_it_should, caught = False, [str(error)]
        else:
            as_it_should &= bool(failed) == (mutant is not AS_IT_IS)
            caught = failed or ["no test fails"]
        print(f"{mutant.number:>2}  {mutant.reading}", *caught, sep="\n      ", flush=True)
    return 0 if as_it_should else 1


def failing(mutant: Mutant) -> list[str]:
    """Make a mutant in a copy of the tree; return the first tests that fail.

    Raises:
        AssertionError: the change does not fit the code any more, or the tests could not be run.
    """
    with tempfile.TemporaryDirectory(prefix="jobhandle-mutant-") as folder:
        copy = Path(folder)
        for name in ("jobhandle_celery", "tasks", "tests", "pyproject.toml", "README.md"):
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy)
        file = copy / "jobhandle_celery" / mutant.file
        text = file.read_text()
        assert text.count(mutant.old) == 1, "it does not fit the code any more"
        file.write_text(text.replace(mutant.old, mutant.new))
        command = [sys.executable, "-m", "pytest", "-x", "-q", *shlex.split(mutant.tests)]
        said = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=LONGEST, check=False)
        failed: list[str] = re.findall(r"^FAILED (.+?)(?: - |$)", said.stdout, re.MULTILINE)
        assert bool(failed) == bool(said.returncode), f"{said.stdout[-3000:]}{said.stderr[-1000:]}"
        return failed


if __name__ == "__main__":
    sys.exit(main())
