"""The results that the children of a worker send to their main process, which writes them together."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from celery import group

from jobhandle_celery import JobStatus
from jobhandle_celery.errors import DatabaseUnavailableError
from jobhandle_celery.store import Run, RunResult, Worker
from jobhandle_celery.store.nodes import CROWD
from jobhandle_celery.worker import finisher
from jobhandle_celery.worker.finisher import MAX_PACKET, MAX_TRIES, Finisher
from tests.job_factory import ADD
from tests.servers import execute
from tests.support import eventually
from tests.worker.cluster import Cluster, NewCluster

ME = Worker("w1", "uid", 1)


class Runs:
    """A store that writes nothing; each call waits for `open`."""

    finishes_together = True

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.refused: set[int] = set()
        self.error: Exception | None = None
        self.on_call: Callable[[], object] = lambda: None
        self.open = threading.Event()
        self.entered = threading.Event()
        self.open.set()

    def finish_many(self, results: Mapping[Run, RunResult], worker: Worker) -> set[int]:
        assert worker == ME
        for run, result in results.items():
            assert run == run_of(run.job_id)
            assert result.text == f'"{run.job_id} \\u0000 \u00e9"'
        self.entered.set()
        assert self.open.wait(30)
        self.calls.append([run.job_id for run in results])
        self.on_call()
        if self.error is not None:
            raise self.error
        return {run.job_id for run in results} - self.refused


def run_of(job_id: int) -> Run:
    return Run(job_id, f"task-{job_id}", 1, f"claim-{job_id}", ME)


class Finishing:
    def __init__(self) -> None:
        self.runs = Runs()
        self.taken: list[int] = []
        store: Any = SimpleNamespace(runs=self.runs)
        self.finisher = Finisher(store, ME, lambda run, _: self.taken.append(run.job_id), nullcontext)

    def send(self, *job_ids: int) -> None:
        for job_id in job_ids:
            assert self.finisher.send(run_of(job_id), RunResult(f'"{job_id} \\u0000 \u00e9"'))


@pytest.fixture
def finishing() -> Iterator[Finishing]:
    finishing = Finishing()
    yield finishing
    finishing.runs.open.set()
    finishing.finisher.end()


def test_results_that_come_during_a_commit_share_the_next(finishing: Finishing) -> None:
    finishing.runs.open.clear()
    finishing.finisher.start()
    finishing.send(1)
    assert finishing.runs.entered.wait(30)
    finishing.send(2, 3)

    finishing.runs.open.set()
    eventually(lambda: len(finishing.runs.calls) == 2)

    assert finishing.runs.calls == [[1], [2, 3]]
    assert finishing.taken == []


def test_flush_waits_for_the_commit_under_way(finishing: Finishing) -> None:
    finishing.runs.open.clear()
    finishing.finisher.start()
    finishing.send(1)
    assert finishing.runs.entered.wait(30)
    threading.Timer(0.05, finishing.runs.open.set).start()

    finishing.finisher.flush()

    assert finishing.runs.calls == [[1]]


def test_result_soon_after_a_commit_waits_for_others(
    finishing: Finishing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finisher, "INTERVAL_PER_RESULT", 3600.0)
    monkeypatch.setattr(finisher, "MAX_INTERVAL", 3600.0)
    monkeypatch.setattr(finishing.finisher._ended, "wait", lambda seconds: finishing.send(3))
    finishing.finisher.start()
    finishing.send(1)
    eventually(lambda: finishing.runs.calls == [[1]])
    finishing.send(2)
    eventually(lambda: len(finishing.runs.calls) == 2)

    assert finishing.runs.calls == [[1], [2, 3]]


def test_flush_ends_while_results_come_without_end(
    finishing: Finishing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finisher, "MAX_BATCH", 2)
    finishing.send(1, 2, 3)
    finishing.finisher.flush()
    assert finishing.runs.calls == [[1, 2], [3]]

    finishing.runs.on_call = lambda: finishing.send(4)
    finishing.send(4)
    finishing.finisher.flush()
    assert finishing.runs.calls[2:] == [[4]] * finisher.MAX_FLUSH


def test_row_that_is_locked_gets_further_tries_and_is_then_taken_over(finishing: Finishing) -> None:
    finishing.runs.refused = {2}
    finishing.send(1, 2)

    finishing.finisher.start()
    eventually(lambda: finishing.taken == [2])

    assert finishing.runs.calls == [[1, 2], *[[2]] * (MAX_TRIES - 1)]


@pytest.mark.parametrize("error", [DatabaseUnavailableError("away"), ZeroDivisionError()])
def test_results_that_are_not_written_are_taken_over_at_once(finishing: Finishing, error: Exception) -> None:
    finishing.runs.error = error
    finishing.send(1)
    finishing.finisher.flush()

    assert (len(finishing.runs.calls), finishing.taken) == (1, [1])


def test_child_writes_a_result_that_is_too_large(finishing: Finishing) -> None:
    assert not finishing.finisher.send(run_of(1), RunResult("1" * MAX_PACKET))


def test_child_writes_its_results_while_the_main_process_reads_none(finishing: Finishing) -> None:
    """The memory of a main process that is stopped, or waits for the database, does not grow."""
    sent = 0
    while finishing.finisher.send(run_of(1), RunResult("1" * 1000)):
        sent += 1
        assert sent < 10_000
    assert sent


def test_child_writes_its_results_once_the_main_process_is_gone(finishing: Finishing) -> None:
    closed, close = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(close)
            os.read(closed, 1)
            os._exit(finishing.finisher.send(run_of(1), RunResult("1")))
        finally:
            os._exit(2)
    finishing.finisher._reader.close()
    os.close(close)
    os.close(closed)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_flush_after_the_end_does_nothing(finishing: Finishing) -> None:
    finishing.finisher.start()
    finishing.send(1)
    finishing.finisher.end()
    finishing.finisher.flush()

    assert finishing.runs.calls == [[1]]
    assert not finishing.finisher.send(run_of(2), RunResult("2"))


def test_body_that_ends_during_the_end_writes_its_result(
    finishing: Finishing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bodies of a threads pool may outlive it. Nothing would read what they send after the last flush."""
    flush, sent = finishing.finisher.flush, list[bool]()

    def send_after() -> None:
        flush()
        sent.append(finishing.finisher.send(run_of(2), RunResult("2")))

    monkeypatch.setattr(finishing.finisher, "flush", send_after)
    finishing.send(1)
    finishing.finisher.end()

    assert finishing.runs.calls == [[1]]
    assert sent == [False]


def test_store_that_cannot_write_them_together_gets_none(finishing: Finishing) -> None:
    finishing.runs.finishes_together = False
    assert not finishing.finisher.send(run_of(1), RunResult("1"))


WRITER = "ALTER TABLE jobhandle_job_event ADD COLUMN writer integer DEFAULT pg_backend_pid()"
WRITERS = "SELECT status_id, writer FROM jobhandle_job_event WHERE job_id = {} AND attempt = 1 ORDER BY id"


@pytest.fixture(scope="module")
def cluster(module_cluster: NewCluster) -> Cluster:
    """One pool process; each event names the connection that wrote it."""
    cluster = module_cluster()
    execute(cluster.database_url, WRITER)
    cluster.start(concurrency=1)
    return cluster


def written_by_its_child(cluster: Cluster, job_id: int) -> bool:
    """Return whether the connection that claimed a job has written its end, too."""
    [(running, child), (final, writer)] = execute(cluster.database_url, WRITERS.format(job_id))
    assert running != final
    return bool(child == writer)


def test_main_process_writes_results_and_children_other_outcomes(cluster: Cluster) -> None:
    result, failure = cluster.submit("add", 1, 2), cluster.submit("unserialisable_result")
    assert (result.wait(30), failure.wait(30)) == (JobStatus.FINISHED, JobStatus.ERROR)
    assert not written_by_its_child(cluster, result.job_id)
    assert written_by_its_child(cluster, failure.job_id)


def members_written_by_their_child(cluster: Cluster, members: int) -> int:
    handle = cluster.jobs.handle()
    handle.submit(group(cluster.app.signature("worker.add", args=(n, n)) for n in range(members)))
    assert handle.wait(120) is JobStatus.FINISHED
    records = handle.members()
    assert [record.result for record in records] == [2 * n for n in range(members)]
    return sum(written_by_its_child(cluster, record.id) for record in records)


def test_child_writes_the_results_of_members_of_a_tree(cluster: Cluster) -> None:
    """The next step of a chain, or the end of a group, does not wait for others."""
    assert members_written_by_their_child(cluster, 2) == 2


def test_main_process_writes_those_of_a_large_group(cluster: Cluster) -> None:
    """The child writes the first, and the last: by them it sees how many are unfinished."""
    assert members_written_by_their_child(cluster, 4 * CROWD) < 4 * CROWD


def test_eager_job_is_written_by_its_own_process(sqlite_url: str, make_jobs_app: Callable[..., Any]) -> None:
    """Also in a pool process: the main process does not know the worker of that run."""
    app = make_jobs_app(sqlite_url, task_always_eager=True)
    handle = app.jobs.handle()

    def send(run: Run, _: RunResult) -> bool:
        pytest.fail(f"job {run.job_id} was sent")

    app.jobs._runtime.finisher = SimpleNamespace(send=send)
    handle.submit(ADD)
    assert handle.result(timeout=0) == 5
