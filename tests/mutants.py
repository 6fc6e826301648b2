"""A test of the tests: each looser reading of a rule, made in a copy of the code, must make a test fail.

By hand, not in CI, for it takes a while::

    python -m tests.mutants            # all of them
    python -m tests.mutants 7 19       # these
    python -m tests.mutants 0          # the code as it is: no test may fail

The first nineteen were found by a model check of the rules, each with what it leads to; then come three of
Celery, and what a verb's author may get wrong. Prints which test caught which, and exits with 1 if one
survived.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 1800
"""Seconds for the tests of one mutant."""


@dataclass(frozen=True)
class Mutant:
    """A change of the code, and the tests that are asked first whether they notice."""

    number: int
    reading: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    Mutant(
        1,
        "the mark Queued is guarded by status only",
        "store/submitting.py",
        'moves("publish"), ~HELD, for_these(group)',
        'moves("publish"), ~HELD, job.c.id.in_([one.job_id for one in group])',
        "tests/store/test_publishing.py",
    ),
    Mutant(
        2,
        "one time column for 'not early' and for the sweep",
        "store/moves.py",
        "DUE = or_(job.c.not_before.is_(None), job.c.not_before <= clock())",
        "DUE = or_(job.c.due_at.is_(None), job.c.due_at <= clock())",
        "tests/store/test_claim.py",
    ),
    Mutant(
        3,
        "a Waiting job that is due cannot be claimed",
        "status.py",
        '_move("claim", STARTABLE,',
        '_move("claim", STARTABLE - _WAITING,',
        "tests/store/test_claim.py",
    ),
    Mutant(
        4,
        "the broker's count alone decides whether a message was lost",
        "store/sweeping.py",
        "DAMPED_AT_MOST = 3",
        "DAMPED_AT_MOST = 10**9",
        "tests/test_sweep.py",
    ),
    Mutant(
        5,
        "a job whose stop was requested and whose worker is lost becomes Requeued",
        "store/losing.py",
        "                NOT_STAMPED,\n                attempts_left,",
        "                attempts_left,",
        "tests/store/test_leases.py",
    ),
    Mutant(
        6,
        "retry() writes Requeued while the body is still inside",
        "seal.py",
        "        self.execution.retry = self\n",
        "        from . import execution\n\n"
        "        execution.retry(self.type, self.execution, self, 'retry')\n",
        "tests/worker/test_retries.py",
    ),
    Mutant(
        7,
        "an outsider sets Error on a running job and resubmits it",
        "store/submitting.py",
        "            job.c.boot_id.is_(None) | ~lease_alive(job.c.boot_id),\n",
        "",
        "tests/store/test_resubmit.py",
    ),
    Mutant(
        8,
        "resubmit resets attempt",
        "store/submitting.py",
        '    "losses": 0,',
        '    "losses": 0, "attempt": 0,',
        "tests/store/test_resubmit.py",
    ),
    Mutant(
        9,
        "resubmit leaves the cancel stamp",
        "store/submitting.py",
        '            "cancel_requested",\n',
        "",
        "tests/store/test_resubmit.py",
    ),
    Mutant(
        10,
        "the claim refuses an expired job, and nobody writes it",
        "store/running.py",
        '                moves("expire"),\n',
        "                literal(False),\n",
        "tests/store/test_claim.py",
    ),
    Mutant(
        11,
        "the reap does not look at the lease again",
        "store/sweeping.py",
        ".where(worker.c.boot_id == boot_id, worker.c.lease_until <= clock(), self._unbroken())",
        ".where(worker.c.boot_id == boot_id, self._unbroken())",
        "tests/store/test_leases.py",
    ),
    Mutant(
        12,
        "leases are believed at once after an outage",
        "store/sweeping.py",
        "                sweep_table.c.unbroken_since <= clock(-self.settings.lease),\n"
        "                sweep_table.c.last_pass_at >= clock(-self.settings.unbroken),\n",
        "",
        "tests/store/test_leases.py",
    ),
    Mutant(
        13,
        "the message carries no attempt",
        "store/running.py",
        "            job.c.attempt == run.attempt - 1,\n",
        "",
        "tests/store/test_claim.py",
    ),
    Mutant(
        14,
        "a revoke for a duplicate on another worker writes Cancelled",
        "store/acting.py",
        "        running = job.c.status_id == JobStatus.RUNNING\n",
        "        running = literal(False)\n",
        "tests/store/test_fences.py",
    ),
    Mutant(
        15,
        "an outsider's Running has a lease",
        "store/acting.py",
        "                    **LEFT,\n",
        "                    'boot_id': 'outsider', 'pid': 1,\n",
        "tests/store/test_leases.py",
    ),
    Mutant(
        16,
        "a run's writes are guarded by status only",
        "store/moves.py",
        "        job.c.attempt == holder.attempt,\n"
        "        job.c.status_id == JobStatus.RUNNING,\n"
        "        by,\n",
        "        job.c.status_id == JobStatus.RUNNING,\n",
        "tests/store/test_fences.py",
    ),
    Mutant(
        17,
        "one thread renews and publishes",
        "worker.py",
        '        self._lease = _Beat("jobhandle-lease", interval, renew, first=SOONER)\n',
        '        self._lease = _Beat("jobhandle-lease", 3600, lambda: None)\n',
        "tests/worker/test_leases.py",
    ),
    Mutant(
        18,
        "a sweep marks Queued, and nothing looks again",
        "store/submitting.py",
        '"publishes": publishes, "damped": 0, "due_at": due}',
        '"publishes": publishes, "damped": 0, "due_at": None}',
        "tests/store/test_publishing.py",
    ),
    Mutant(
        19,
        "a claim whose answer was cut off is asked again and refused",
        "store/running.py",
        "        if row.claim_id == run.claim_id and row.status_id is JobStatus.RUNNING:\n"
        "            return run\n",
        "",
        "tests/store/test_claim.py",
    ),
    Mutant(
        20,
        "a veto that Celery swallows: the refused body runs",
        "task.py",
        "        _refuse(task, run, refused)\n",
        "        pass\n",
        "tests/worker/test_definitions.py",
    ),
    Mutant(
        21,
        "a task class with its own before_start, and no super()",
        "seal.py",
        "metaclass(plain.__name__, (JobTask, plain), own)",
        "metaclass(plain.__name__, (plain, JobTask), own)",
        "tests/worker/test_definitions.py",
    ),
    Mutant(
        22,
        "bookkeeping of a revoked task for a mere duplicate",
        "task.py",
        "    if reason in _REVOKED and _may_tell(task, run):\n",
        "    if True:\n",
        "tests/worker/test_refusals.py tests/worker/test_definitions.py",
    ),
    Mutant(
        23,
        "an end whose answer was lost is asked again and refused",
        "store/running.py",
        '            ) or self._already_by(connection, run, to["status_id"]):\n'
        "                return True\n"
        "            self._leave(connection, run)\n",
        "            ):\n                return True\n            self._leave(connection, run)\n",
        "tests/store/test_fences.py",
    ),
    Mutant(
        24,
        "whoever settles a run in its place leaves it its claim",
        "store/outcomes.py",
        'TAKEN_AWAY: dict[str, Any] = {"claim_id": None}',
        "TAKEN_AWAY: dict[str, Any] = {}",
        "tests/store/test_fences.py",
    ),
    Mutant(
        25,
        "a resubmit whose answer was lost is asked again and refused",
        "store/submitting.py",
        "            if former.task_id == task_id:\n                return True\n",
        "",
        "tests/store/test_resubmit.py",
    ),
]

AS_IT_IS = Mutant(
    0,
    "the code as it is",
    "status.py",
    "class JobStatus",
    "class JobStatus",
    " ".join(sorted({test for mutant in MUTANTS for test in mutant.tests.split()})),
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
        failed = failing(mutant)
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
        assert text.count(mutant.old) == 1, f"mutant {mutant.number} does not fit the code any more"
        file.write_text(text.replace(mutant.old, mutant.new))
        command = [sys.executable, "-m", "pytest", "-x", "-q", *mutant.tests.split()]
        said = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=LONGEST, check=False)
        failed: list[str] = re.findall(r"^FAILED (.+?)(?: - |$)", said.stdout, re.MULTILINE)
        assert bool(failed) == bool(said.returncode), f"{said.stdout[-3000:]}{said.stderr[-1000:]}"
        return failed


if __name__ == "__main__":
    sys.exit(main())
