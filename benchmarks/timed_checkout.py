"""Times operations of the library that PYTHONPATH names. `compare` runs a process for each checkout.

``python -P timed_checkout.py BROKER_URL DATABASE_URL`` reads a number of jobs from each line of its standard
input, and writes the microseconds per job of each operation as JSON. It is run by its path: the package
`benchmarks` would import the library of its own checkout.
"""

import json
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from celery import Celery

import jobhandle_celery
from jobhandle_celery.store import Run, Worker


def _body(number: int) -> int:
    return number


class Operations:
    """Submit, claim and finish, each for a number of jobs."""

    def __init__(self, broker_url: str, database_url: str) -> None:
        app = Celery("compare", broker=broker_url, set_as_current=False)
        self._task: Any = app.task(name="compare.body")(_body)
        self._jobs = jobhandle_celery.Jobs(app, database_url)
        self._jobs.upgrade_schema()
        self._handle = self._jobs.handle()
        self._store: Any = self._jobs._runtime.store
        self._worker = Worker("compare@localhost", str(uuid.uuid4()), 1)

    def time(self, count: int) -> dict[str, float]:
        """Return the microseconds per job of each operation: the process's processor time, and elapsed."""
        self._store.leases.renew(self._worker)
        ids: list[int] = []
        submits = _timed(
            "submit", lambda number: ids.append(self._handle.submit(self._task.s(number))), range(count)
        )
        runs = [self._run(job_id) for job_id in ids]
        claims = _timed("claim", lambda run: _check(self._store.runs.claim(run, "compare.body"), Run), runs)
        finishes = _timed("finish", lambda run: _check(self._store.runs.finish(run, "1"), bool), runs)
        return submits | claims | finishes

    def _run(self, job_id: int) -> Run:
        # The read first writes the pending marks Queued, which would be timed with the claims.
        task_id = self._jobs.attach(job_id).get_job().task_id
        return Run(job_id, str(task_id), 1, str(uuid.uuid4()), self._worker)


def _check(done: object, kind: type) -> None:
    if not done or not isinstance(done, kind):
        raise AssertionError(done)


def _timed(name: str, operation: Callable[[Any], object], items: Sequence[Any]) -> dict[str, float]:
    started, spent = time.perf_counter(), time.process_time()
    for item in items:
        operation(item)
    spent, elapsed = time.process_time() - spent, time.perf_counter() - started
    microseconds = {"processor time": spent, "elapsed": elapsed}
    return {f"{name}, {kind}": value * 1e6 / len(items) for kind, value in microseconds.items()}


if __name__ == "__main__":
    operations = Operations(*sys.argv[1:])
    print(jobhandle_celery.__file__, flush=True)
    for line in sys.stdin:
        print(json.dumps(operations.time(int(line))), flush=True)
