"""A process that is killed or stopped at a chosen step: a statement, a commit, a publish.

`python -m tests.faults.step_faults ACTION` imports everything once and then forks a child for each line
that it reads, the number of a step and a signal; it answers with the child's exit.
"""

import ctypes
import itertools
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tests.worker.cluster import Cluster
from tests.workers import ROOT

SURVIVED = "survived"
DIRECT = "a statement by psycopg directly"


class StepRunner:
    """The test's side: one action, run repeatedly."""

    def __init__(self, cluster: Cluster, action: str, settings: Mapping[str, Any], **given: Any) -> None:
        self._numbers = itertools.count(1)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.step_faults", action],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
            env={
                **os.environ,
                "JOBHANDLE_TEST_DATABASE_URL": cluster.database_url,
                "JOBHANDLE_TEST_BROKER_URL": cluster.broker_url,
                "JOBHANDLE_TEST_SETTINGS": json.dumps({**cluster.settings, **settings}),
                "JOBHANDLE_TEST_GIVEN": json.dumps(given),
            },
        )
        self.stopped: list[int] = []

    def do(self, step: int, what: signal.Signals) -> str:
        """Run the action; return the step at which it was stopped, or SURVIVED if it has fewer steps."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{step} {what.value}\n")
        self._process.stdin.flush()
        where, _, pid = self._process.stdout.readline().strip().rpartition(" ")
        assert where, "the step_runner has ended"
        if what is signal.SIGSTOP and where != SURVIVED:
            self.stopped.append(int(pid))
        return where

    def each_step(self, what: signal.Signals = signal.SIGKILL) -> Iterator[str]:
        """Run the action once for each step, and stop it there; yield the steps."""
        for step in itertools.count(1):
            where = self.do(step, what)
            if where == SURVIVED:
                return
            yield where

    def resume_stopped(self, what: signal.Signals = signal.SIGCONT) -> None:
        """Resume the frozen processes, or end them."""
        for pid in self.stopped:
            os.kill(pid, what)
        self.stopped.clear()

    def close(self) -> None:
        self.resume_stopped(signal.SIGKILL)
        self._process.communicate(timeout=30)  # it ends at the end of its input


@contextmanager
def step_runner(
    cluster: Cluster, action: str, *, settings: Mapping[str, Any] | None = None, **given: Any
) -> Iterator[StepRunner]:
    """Run an action of a cluster's process, which may have settings of its own."""
    made = StepRunner(cluster, action, settings or {}, **given)
    try:
        yield made
    finally:
        made.close()


# The child's side.


class _Steps:
    """Counts the steps of this process, and sends it the signal at the chosen one."""

    def __init__(self) -> None:
        self.at = 0
        self._count = 0
        self._what = 0
        self._descriptor = -1

    def report_to(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def begin(self, at: int, what: int) -> None:
        self._count, self.at, self._what = 0, at, what

    def report(self, what: str) -> None:
        os.write(self._descriptor, f"{what} {os.getpid()}".encode())

    def __call__(self, step: str) -> None:
        self._count += 1
        if self._count == self.at:
            self.report(step)
            os.kill(os.getpid(), self._what)


step = _Steps()


def _before_and_after(owner: Any, name: str, describe: Callable[..., str] | None = None) -> None:
    """Make two steps of a method: before it, and after its return; `describe` names them."""
    method = getattr(owner, name)

    def stepped(*args: Any, **kwargs: Any) -> Any:
        label = describe(*args) if describe else name
        step(f"before {label}")
        returned = method(*args, **kwargs)
        step(f"after {label}")
        return returned

    setattr(owner, name, stepped)


def _install() -> None:
    """Patch the drivers: event listeners on the engine would disable the direct psycopg path."""
    from kombu.transport.redis import Channel
    from sqlalchemy.dialects.mysql.mysqldb import MySQLDialect_mysqldb
    from sqlalchemy.engine.default import DefaultDialect

    from jobhandle_celery.broker.redis_transport import RedisTransport
    from jobhandle_celery.store.direct_psycopg import DirectPsycopg

    for name in ("do_execute", "do_execute_no_params", "do_executemany"):
        _before_and_after(DefaultDialect, name, _words)
    _before_and_after(MySQLDialect_mysqldb, "do_executemany", _words)  # its own, PyMySQL's too
    _before_and_after(DefaultDialect, "do_commit")
    for name in ("rows", "rows_of_each"):
        _before_and_after(DirectPsycopg, name, lambda *_: DIRECT)
    _before_and_after(Channel, "_put")
    _before_and_after(RedisTransport, "push")


def _words(_dialect: Any, _cursor: Any, statement: str, *_: Any) -> str:
    return " ".join(statement.split()[:4])


def _die_with_parent() -> None:
    if sys.platform == "linux":  # otherwise a frozen child would outlive a killed test run
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main(action: str) -> None:
    from celery import Celery

    from jobhandle_celery import Jobs
    from tests.faults import step_actions

    url = os.environ["JOBHANDLE_TEST_DATABASE_URL"]
    app = Celery("stepping", broker=os.environ["JOBHANDLE_TEST_BROKER_URL"], set_as_current=False)
    app.conf.update(json.loads(os.environ["JOBHANDLE_TEST_SETTINGS"]))
    given: Mapping[str, Any] = json.loads(os.environ["JOBHANDLE_TEST_GIVEN"])
    jobs = Jobs(app, url)
    act = getattr(step_actions, action)
    _install()
    for line in sys.stdin:
        read_end, write_end = os.pipe()
        child = os.fork()
        if not child:
            os.close(read_end)
            try:
                _die_with_parent()
                step.report_to(write_end)
                jobs.count_by_status()  # connect and check the schema before the steps are counted
                step.begin(*map(int, line.split()))
                act(jobs, step.at, given)
                step.report(SURVIVED)
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        os.close(write_end)
        os.waitpid(child, os.WUNTRACED)
        print(os.read(read_end, 1000).decode(), flush=True)
        os.close(read_end)


if __name__ == "__main__":
    main(sys.argv[1])
