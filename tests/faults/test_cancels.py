"""Cancels at every moment, by many processes at once: a job answered Cancelled never starts."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobhandle_celery import JobStatus
from tests.faults.step_faults import SURVIVED, step_runner
from tests.faults.worker_faults import account_for_attempts, count_events
from tests.faults.workload import BODIES, Workload
from tests.rng import scaled, stretched
from tests.support import eventually
from tests.worker.cluster import Cluster, NewCluster

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(stretched(900))]

CANCELLED, FINISHED, RUNNING = JobStatus.CANCELLED, JobStatus.FINISHED, JobStatus.RUNNING


@pytest.fixture(scope="module")
def cluster(module_cluster: NewCluster) -> Cluster:
    """A cluster whose workers are not killed."""
    cluster = module_cluster(settings={"jobhandle_republish_after": 5})
    for _ in range(2):
        cluster.start(BODIES, concurrency=3, ready=False)
    for worker in cluster.workers:
        worker.wait_until_ready()
    return cluster


def by_processes(workload: Workload, number: int, ids: list[int]) -> None:
    """Cancel the jobs in a separate process, and return the answers."""
    details = workload.path.with_name(f"{workload.path.name}-answers-{number}")
    with step_runner(workload.cluster, "cancel_all", ids=ids, answers=str(details)) as canceller:
        assert canceller.do(0, signal.SIGKILL) == SURVIVED
    for job_id, status, moment in map(str.split, details.read_text().splitlines()):
        if status == CANCELLED:
            workload.prevented[int(job_id)] = float(moment)


def by_handles(workload: Workload, number: int, ids: list[int]) -> None:
    for job_id in ids:
        assert workload.cancel(job_id) in (CANCELLED, RUNNING, FINISHED)


def by_the_dozen(workload: Workload, number: int, ids: list[int]) -> None:
    for start in range(0, len(ids), 12):
        dozen = ids[start : start + 12]
        count = workload.cluster.jobs.cancel_many(ids=dozen)
        moment = time.time()
        prevented = [job.id for job in workload.cluster.jobs.find(ids=dozen, status=CANCELLED) if job.id]
        assert len(prevented) <= count <= len(dozen)
        workload.prevented |= dict.fromkeys(prevented, moment)


def test_cancels_against_claims_have_one_winner_each(cluster: Cluster) -> None:
    workload = Workload(cluster)
    ids = workload.submit([workload.job("work", 0) for _ in range(scaled(1000))])
    workload.rng.shuffle(ids)
    ways = [by_processes, by_processes, by_handles, by_handles, by_the_dozen]
    with ThreadPoolExecutor(len(ways)) as pool:
        parts = [
            pool.submit(way, workload, number, ids[number :: len(ways)]) for number, way in enumerate(ways)
        ]
        for part in parts:
            part.result()

    workload.wait_until_final()

    statuses = {job_id: row.status for job_id, row in workload.audit().items()}
    assert set(statuses.values()) == {CANCELLED, FINISHED}, "both sides won at times, or it was no race"
    assert {job_id for job_id, status in statuses.items() if status is CANCELLED} == set(workload.prevented)


def test_cancels_between_attempts_prevent_the_next_one(cluster: Cluster) -> None:
    workload = Workload(cluster)
    ids = workload.submit([workload.job("again", 0, 4, 0.5) for _ in range(scaled(50))])
    before = count_events(cluster, "between two attempts")

    def cancel(job_id: int) -> None:
        if workload.rng.random() < 0.7:
            eventually(lambda: workload.handle(job_id).job_status() in (JobStatus.REQUEUED, FINISHED))
        workload.cancel(job_id)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(cancel, workload.rng.sample(ids, len(ids))))

    workload.wait_until_final()
    account_for_attempts(workload, workload.audit())
    assert count_events(cluster, "between two attempts") - before > 1


def test_cancel_outlives_the_workers(new_cluster: NewCluster) -> None:
    """Without a worker; with messages reserved by a worker that is killed; with redelivered messages."""
    cluster = new_cluster(settings={"worker_prefetch_multiplier": 16, "jobhandle_republish_after": 2})
    workload = Workload(cluster)
    ids = workload.submit_mixed(scaled(90), 0.1, max_attempts=10**6)
    messages = cluster.redis.lrange("celery", 0, -1)
    for job_id in ids[::3]:
        assert workload.cancel(job_id) is CANCELLED

    worker = cluster.start(BODIES, concurrency=2)
    eventually(lambda: workload.count_started() > 10)
    for job_id in ids[1::3]:
        workload.cancel(job_id)
    worker.kill()
    for job_id in ids[1::6]:
        workload.cancel(job_id, terminate=True)
    cluster.start(BODIES, concurrency=3)
    workload.wait_until_final()
    for message in messages:
        assert isinstance(message, bytes)
        cluster.deliver(message)
    eventually(lambda: cluster.redis.llen("celery") == 0)
    cluster.start(BODIES, concurrency=1, queues=["last"])
    last = workload.submit([workload.job("work", 0, queue="last")])

    workload.wait_until_final()
    rows = workload.audit(lost_before_body=True)
    account_for_attempts(workload, rows)
    assert {rows[job_id].status for job_id in ids[::3]} == {CANCELLED}
    assert rows[last[0]].status is FINISHED


@pytest.mark.parametrize("pool", ["prefork", "gevent", "threads", "solo"])
def test_terminate_is_done_by_the_jobs_own_worker(new_cluster: NewCluster, pool: str) -> None:
    """Broadcasts are disabled. A pool that cannot end a body reports so, and its jobs end by themselves."""
    cluster = new_cluster(settings={"worker_enable_remote_control": False})
    workload = Workload(cluster)
    worker = cluster.start(BODIES, pool=pool, concurrency=9)
    can = pool in ("prefork", "gevent")
    seconds, count = (600 if can else 3), (1 if pool == "solo" else 3)
    deaf = workload.submit([workload.job("work", seconds) for _ in range(count)])
    deaf_by_consent = workload.submit([workload.job("may_be_killed", seconds) for _ in range(count)])
    attentive = workload.submit([workload.job("listen", seconds) for _ in range(count)])

    for job_id in workload.ids:
        handle = workload.handle(job_id)
        eventually(lambda: handle.job_status() is RUNNING)  # noqa: B023
        assert workload.cancel(job_id, terminate=job_id in deaf) is RUNNING

    workload.wait_until_final()
    rows = workload.audit(lost_before_body=True)
    account_for_attempts(workload, rows)
    assert {rows[job_id].status for job_id in attentive} == {CANCELLED}
    for job_id in deaf + deaf_by_consent:
        assert rows[job_id].status is (CANCELLED if can else FINISHED)
        says = f"job {job_id}: its body is to be terminated, and the pool"
        assert (says in worker.log) is not can
    assert not cluster.app.control.ping(timeout=0.5), "the worker answered a broadcast"
