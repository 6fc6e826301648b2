"""Claims of bodies that begin in one process at a time: made together, and each answered by itself."""

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import select

from jobhandle_celery import JobStatus
from jobhandle_celery.errors import DatabaseUnavailableError
from jobhandle_celery.schema import job
from jobhandle_celery.store import ClaimRejected, RejectionReason, Run, Worker
from jobhandle_celery.worker import claimer
from jobhandle_celery.worker.claimer import Claimer
from tests.apps import lines_of
from tests.servers import execute
from tests.support import eventually
from tests.worker.cluster import Cluster, NewCluster

ME = Worker("w1", "uid", 1)
POOL = 8
REFUSED = ClaimRejected(RejectionReason.CANCELLED)


class Runs:
    """A store that writes nothing; each call waits for `open`."""

    claims_together = True

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.alone: list[tuple[int, str]] = []
        """Claims that were made by themselves: the job, and the name of the thread."""
        self.first: set[int] = set()
        """Jobs at which another process was first."""
        self.error: Exception | None = None
        self.open = threading.Event()
        self.entered = threading.Event()
        self.open.set()

    def claim_many(self, claims: Mapping[Run, str], worker: Worker) -> set[str]:
        assert worker == ME
        assert [task for run, task in claims.items()] == [f"task of {run.job_id}" for run in claims]
        self.entered.set()
        assert self.open.wait(30)
        self.calls.append([run.job_id for run in claims])
        if self.error is not None:
            raise self.error
        return {run.claim_id for run in claims if run.job_id not in self.first}

    def claim(self, run: Run, task: str) -> Run | ClaimRejected:
        assert task == f"task of {run.job_id}"
        self.alone.append((run.job_id, threading.current_thread().name))
        return REFUSED if run.job_id in self.first else run


def run_of(job_id: int) -> Run:
    return Run(job_id, f"task-{job_id}", 1, f"claim-{job_id}", ME)


class Claiming:
    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.runs = Runs()
        self.pool = pool
        store: Any = SimpleNamespace(runs=self.runs)
        self.given_back: list[Run] = []
        self.claimer = Claimer(store, ME, POOL, self.given_back.append)

    def begin(self, *job_ids: int) -> list[Future[Run | ClaimRejected]]:
        """Claim in threads of their own; return once all wait."""
        waiting = self.claimer._waiting.qsize()
        claims = [
            self.pool.submit(self.claimer.claim, run_of(job_id), f"task of {job_id}") for job_id in job_ids
        ]
        eventually(lambda: self.claimer._waiting.qsize() == waiting + len(job_ids))
        return claims

    def begin_during_a_commit(self, *job_ids: int) -> list[Future[Run | ClaimRejected]]:
        """Let claims wait while the commit of another, of job 1, is under way."""
        self.runs.open.clear()
        self.claimer.start()
        first = self.pool.submit(self.claimer.claim, run_of(1), "task of 1")
        assert self.runs.entered.wait(30)
        return [first, *self.begin(*job_ids)]


@pytest.fixture
def claiming() -> Iterator[Claiming]:
    with ThreadPoolExecutor(POOL, thread_name_prefix="body") as pool:
        claiming = Claiming(pool)
        yield claiming
        claiming.runs.open.set()
        claiming.claimer.end()


def test_claims_that_come_during_a_commit_share_the_next(claiming: Claiming) -> None:
    claims = claiming.begin_during_a_commit(2, 3)
    claiming.runs.open.set()

    assert {claim.result(30) for claim in claims} == {run_of(1), run_of(2), run_of(3)}
    assert [sorted(call) for call in claiming.runs.calls] == [[1], [2, 3]]
    assert claiming.runs.alone == []


def test_claim_that_is_not_won_is_made_again_by_its_own_thread(claiming: Claiming) -> None:
    """Its row may be locked for minutes: only its own body waits. Its refusal is that of a claim alone."""
    claiming.runs.first = {3}
    claims = claiming.begin_during_a_commit(2, 3)
    claiming.runs.open.set()

    assert [claim.result(30) for claim in claims] == [run_of(1), run_of(2), REFUSED]
    [(job_id, thread)] = claiming.runs.alone
    assert job_id == 3
    assert thread.startswith("body")


@pytest.mark.parametrize("error", [DatabaseUnavailableError("away"), ZeroDivisionError()])
def test_each_claim_is_made_by_itself_after_an_error(claiming: Claiming, error: Exception) -> None:
    """Also those after it: the thread goes on."""
    claiming.runs.error = error
    claims = claiming.begin_during_a_commit(2, 3)
    claiming.runs.open.set()
    assert [claim.result(30) for claim in claims] == [run_of(1), run_of(2), run_of(3)]
    assert sorted(job_id for job_id, _ in claiming.runs.alone) == [1, 2, 3]

    claiming.runs.error = None
    assert claiming.claimer.claim(run_of(4), "task of 4") == run_of(4)
    assert len(claiming.runs.alone) == 3


def test_body_that_ended_while_it_waited_claims_nothing(
    claiming: Claiming, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool of greenlets ends one by an error where it waits: its job stays with its message."""

    class Ended(BaseException):
        pass

    class Wait:
        acquired = 0

        def acquire(self) -> None:
            self.acquired += 1
            if self.acquired == 2:
                raise Ended

        def release(self) -> None:
            pass

    monkeypatch.setattr(claimer, "threading", SimpleNamespace(Lock=Wait))
    with pytest.raises(Ended):
        claiming.claimer.claim(run_of(2), "task of 2")
    monkeypatch.undo()
    [claim] = claiming.begin(3)
    claiming.claimer.start()

    assert claim.result(30) == run_of(3)
    assert claiming.runs.calls == [[3]]
    assert claiming.given_back == []


@pytest.mark.parametrize("answered", [False, True], ids=["before its answer", "after its answer"])
def test_job_that_is_won_for_a_body_that_ended_meanwhile_is_given_back(
    claiming: Claiming, monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    """No pass recovers it while its worker lives."""

    class Ended(BaseException):
        pass

    wait = claimer._Claim.wait

    def end(self: claimer._Claim) -> bool:
        if self.run != run_of(2):
            return wait(self)
        if answered:
            wait(self)
        else:
            assert claiming.runs.entered.wait(30)
            self.withdrawn = True
        raise Ended

    monkeypatch.setattr(claimer._Claim, "wait", end)
    if not answered:
        claiming.runs.open.clear()
    claiming.claimer.start()
    with pytest.raises(Ended):
        claiming.claimer.claim(run_of(2), "task of 2")
    claiming.runs.open.set()

    assert claiming.claimer.claim(run_of(3), "task of 3") == run_of(3)
    assert claiming.runs.calls == [[2], [3]]
    assert claiming.given_back == [run_of(2)]


def test_end_answers_what_waits_and_ends_the_thread(claiming: Claiming) -> None:
    """Bodies of a threads pool may begin until the process ends: they claim by themselves."""
    claims = claiming.begin_during_a_commit(2, 3)
    ending = claiming.pool.submit(claiming.claimer.end)
    claiming.runs.open.set()
    ending.result(30)

    assert [claim.result(30) for claim in claims] == [run_of(1), run_of(2), run_of(3)]
    assert not claiming.claimer._thread.is_alive()
    assert claiming.claimer.claim(run_of(4), "task of 4") == run_of(4)
    assert [job_id for job_id, _ in claiming.runs.alone] == [4]


def test_claim_soon_after_a_commit_waits_until_much_of_the_pool_waits(
    claiming: Claiming, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first claim does not wait, also soon after the machine has started: the clock counts from there."""
    monkeypatch.setattr(claimer, "INTERVAL", 1e9)
    claiming.claimer.start()
    assert claiming.claimer.claim(run_of(1), "task of 1") == run_of(1)
    claims = [
        claiming.pool.submit(claiming.claimer.claim, run_of(job_id), f"task of {job_id}") for job_id in (2, 3)
    ]

    assert {claim.result(30) for claim in claims} == {run_of(2), run_of(3)}
    assert [sorted(call) for call in claiming.runs.calls] == [[1], [2, 3]]


def test_batch_has_a_limit(claiming: Claiming, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claimer, "MAX_BATCH", 2)
    claims = claiming.begin_during_a_commit(2, 3, 4)
    claiming.runs.open.set()

    assert [claim.result(30) for claim in claims] == [run_of(number) for number in (1, 2, 3, 4)]
    assert [len(call) for call in claiming.runs.calls] == [1, 2, 1]


def test_store_that_cannot_claim_together_gets_each_by_itself(claiming: Claiming) -> None:
    claiming.runs.claims_together = False
    assert claiming.claimer.claim(run_of(1), "task of 1") == run_of(1)
    assert [job_id for job_id, _ in claiming.runs.alone] == [1]


WRITER = "ALTER TABLE jobhandle_job_event ADD COLUMN writer bigint DEFAULT txid_current()"
WRITERS = "SELECT status_id, writer FROM jobhandle_job_event WHERE attempt = 1 ORDER BY id"


@pytest.fixture(scope="module", params=["threads", "gevent"])
def cluster(request: pytest.FixtureRequest, module_cluster: NewCluster) -> Iterator[Cluster]:
    """A pool in one process; each event names the transaction that wrote it."""
    cluster = module_cluster()
    execute(cluster.database_url, WRITER)
    cluster.start(pool=request.param, concurrency=20)
    yield cluster
    cluster.close()  # the next one has the same broker


def test_jobs_begin_and_end_by_common_commits(cluster: Cluster) -> None:
    handles = [cluster.submit("add", number, 1) for number in range(100)]
    assert [handle.result(30) for handle in handles] == [number + 1 for number in range(100)]

    writers: dict[int, list[int]] = {}
    for status, writer in execute(cluster.database_url, WRITERS):
        writers.setdefault(status, []).append(writer)
    for status in (JobStatus.RUNNING, JobStatus.FINISHED):
        assert len(writers[status.id]) == 100
        assert len(set(writers[status.id])) < 100


def test_row_that_a_caller_has_locked_holds_up_only_its_own_job(cluster: Cluster) -> None:
    path = cluster.new_file()
    locked, message = cluster.submit_parked("append", str(path), "late")
    caller = sqlalchemy.create_engine(cluster.database_url)
    with caller.connect() as connection:
        connection.execute(select(job.c.id).where(job.c.id == locked.job_id).with_for_update())
        cluster.deliver(message)
        eventually(lambda: cluster.redis.llen("celery") == 0)
        others = [cluster.submit("add", number, 1) for number in range(20)]
        assert [other.wait(30) for other in others] == [JobStatus.FINISHED] * 20
        assert lines_of(path) == []
    caller.dispose()

    assert locked.wait(30) is JobStatus.FINISHED
    assert lines_of(path) == ["late"]


def test_cancelled_job_and_a_duplicate_are_refused(cluster: Cluster) -> None:
    path = cluster.new_file()
    cancelled, message = cluster.submit_parked("append", str(path), "cancelled")
    assert cancelled.cancel_job() is JobStatus.CANCELLED
    twice, duplicate = cluster.submit_parked("append", str(path), "once")
    for sent in (message, duplicate, duplicate):
        cluster.deliver(sent)

    assert twice.wait(30) is JobStatus.FINISHED
    assert cluster.submit("add", 1, 1).result(30) == 2
    eventually(lambda: cluster.redis.llen("celery") == 0)
    assert lines_of(path) == ["once"]
    assert cancelled.get_job().attempt == 0
