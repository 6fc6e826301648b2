"""The results that the children of a worker send to their main process, which writes them together."""

import os
import threading
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from jobhandle_celery.errors import DatabaseUnavailableError
from jobhandle_celery.store import Run, RunResult, Worker
from jobhandle_celery.worker.finisher import MAX_PACKET, MAX_TRIES, Finisher
from tests.support import eventually

ME = Worker("w1", "uid", 1)


class Runs:
    """A store that writes nothing; each call waits for `open`."""

    finishes_together = True

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.refused: set[int] = set()
        self.error: Exception | None = None
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
        self.finisher = Finisher(store, ME, lambda run, _: self.taken.append(run.job_id))

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


def test_flush_writes_what_was_sent_and_waits_for_the_commit_under_way(finishing: Finishing) -> None:
    finishing.runs.open.clear()
    finishing.finisher.start()
    finishing.send(1)
    assert finishing.runs.entered.wait(30)
    finishing.send(2)
    threading.Timer(0.05, finishing.runs.open.set).start()

    finishing.finisher.flush()

    assert finishing.runs.calls == [[1], [2]]


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


def test_child_writes_its_results_once_the_main_process_is_gone(finishing: Finishing) -> None:
    closed, close = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(close)
        os.read(closed, 1)
        os._exit(finishing.finisher.send(run_of(1), RunResult("1")))
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


def test_store_that_cannot_write_them_together_gets_none(finishing: Finishing) -> None:
    finishing.runs.finishes_together = False
    assert not finishing.finisher.send(run_of(1), RunResult("1"))
