"""Cancels at every moment, by many at once: what was answered Cancelled is never started."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobhandle_celery import JobStatus
from tests.chance import scaled, stretched
from tests.faults.crowd import BODIES, Crowd
from tests.faults.stepping import SURVIVED, stepper
from tests.faults.worker_fates import account, said
from tests.support import eventually
from tests.worker.site import NewSite, Site

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(stretched(300))]

CANCELLED, FINISHED, RUNNING = JobStatus.CANCELLED, JobStatus.FINISHED, JobStatus.RUNNING


@pytest.fixture(scope="module")
def site(module_site: NewSite) -> Site:
    """A site whose workers stay well."""
    site = module_site(settings={"jobhandle_republish_after": 5})
    for _ in range(2):
        site.start(BODIES, concurrency=3, ready=False)
    for worker in site.workers:
        worker.wait_until_ready(60)
    return site


def by_processes(crowd: Crowd, number: int, ids: list[int]) -> None:
    """Cancel them in a process of its own, and hear what it was told."""
    told = crowd.path.with_name(f"{crowd.path.name}-told-{number}")
    with stepper(crowd.site, "cancel_all", ids=ids, told=str(told)) as canceller:
        assert canceller.do(0, signal.SIGKILL) == SURVIVED
    for job_id, status, moment in map(str.split, told.read_text().splitlines()):
        if status == CANCELLED:
            crowd.prevented[int(job_id)] = float(moment)


def by_handles(crowd: Crowd, number: int, ids: list[int]) -> None:
    for job_id in ids:
        assert crowd.cancel(job_id) in (CANCELLED, RUNNING, FINISHED)


def by_the_dozen(crowd: Crowd, number: int, ids: list[int]) -> None:
    for start in range(0, len(ids), 12):
        dozen = ids[start : start + 12]
        count = crowd.site.jobs.cancel_many(ids=dozen)
        moment = time.time()
        prevented = [job.id for job in crowd.site.jobs.find(ids=dozen, status=CANCELLED) if job.id]
        assert len(prevented) <= count <= len(dozen)
        crowd.prevented |= dict.fromkeys(prevented, moment)


def test_cancels_against_claims_have_one_winner_each(site: Site) -> None:
    crowd = Crowd(site)
    ids = crowd.submit([crowd.job("work", 0) for _ in range(scaled(1000))])
    crowd.chance.shuffle(ids)
    ways = [by_processes, by_processes, by_handles, by_handles, by_the_dozen]
    with ThreadPoolExecutor(len(ways)) as pool:
        parts = [pool.submit(way, crowd, number, ids[number :: len(ways)]) for number, way in enumerate(ways)]
        for part in parts:
            part.result()

    crowd.settle()

    statuses = {job_id: row.status for job_id, row in crowd.audit().items()}
    assert set(statuses.values()) == {CANCELLED, FINISHED}, "both sides won at times, or it was no race"
    assert {job_id for job_id, status in statuses.items() if status is CANCELLED} == set(crowd.prevented)


def test_cancels_between_attempts_prevent_the_next_one(site: Site) -> None:
    crowd = Crowd(site)
    ids = crowd.submit([crowd.job("again", 0, 4, 0.5) for _ in range(scaled(50))])
    before = said(site, "between two attempts")

    def cancel(job_id: int) -> None:
        if crowd.chance.random() < 0.7:
            eventually(lambda: crowd.handle(job_id).job_status() in (JobStatus.REQUEUED, FINISHED), 60)
        crowd.cancel(job_id)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(cancel, crowd.chance.sample(ids, len(ids))))

    crowd.settle()
    account(crowd, crowd.audit())
    assert said(site, "between two attempts") - before > 1


def test_a_cancel_outlives_the_workers(new_site: NewSite) -> None:
    """Without any worker; with messages in the hand of one that is killed; with messages that come again."""
    site = new_site(settings={"worker_prefetch_multiplier": 16, "jobhandle_republish_after": 2})
    crowd = Crowd(site)
    ids = crowd.submit_mixed(scaled(90), 0.1, max_attempts=10**6)
    messages = site.redis.lrange("celery", 0, -1)
    for job_id in ids[::3]:
        assert crowd.cancel(job_id) is CANCELLED

    worker = site.start(BODIES, concurrency=2)
    eventually(lambda: crowd.number_begun() > 10, 60)
    for job_id in ids[1::3]:
        crowd.cancel(job_id)
    worker.kill()
    for job_id in ids[1::6]:
        crowd.cancel(job_id, terminate=True)
    site.start(BODIES, concurrency=3)
    crowd.settle()
    for message in messages:
        assert isinstance(message, bytes)
        site.deliver(message)
    eventually(lambda: site.redis.llen("celery") == 0, 60)
    site.start(BODIES, concurrency=1, queues=["last"])
    last = crowd.submit([crowd.job("work", 0, queue="last")])

    crowd.settle()
    rows = crowd.audit(lost_before_body=True)
    account(crowd, rows)
    assert {rows[job_id].status for job_id in ids[::3]} == {CANCELLED}
    assert rows[last[0]].status is FINISHED


@pytest.mark.parametrize("pool", ["prefork", "gevent", "threads", "solo"])
def test_an_end_by_force_comes_from_the_jobs_own_worker(new_site: NewSite, pool: str) -> None:
    """No broadcast is heard here. A pool that cannot end a body says so, and its jobs end as they do."""
    site = new_site(settings={"worker_enable_remote_control": False})
    crowd = Crowd(site)
    worker = site.start(BODIES, pool=pool, concurrency=9)
    can = pool in ("prefork", "gevent")
    seconds, count = (600 if can else 3), (1 if pool == "solo" else 3)
    deaf = crowd.submit([crowd.job("work", seconds) for _ in range(count)])
    deaf_by_consent = crowd.submit([crowd.job("may_be_killed", seconds) for _ in range(count)])
    attentive = crowd.submit([crowd.job("listen", seconds) for _ in range(count)])

    for job_id in crowd.ids:
        handle = crowd.handle(job_id)
        eventually(lambda: handle.job_status() is RUNNING, 60)  # noqa: B023
        assert crowd.cancel(job_id, terminate=job_id in deaf) is RUNNING

    crowd.settle()
    rows = crowd.audit(lost_before_body=True)
    account(crowd, rows)
    assert {rows[job_id].status for job_id in attentive} == {CANCELLED}
    for job_id in deaf + deaf_by_consent:
        assert rows[job_id].status is (CANCELLED if can else FINISHED)
        says = f"job {job_id} should end; this worker's pool cannot end a body"
        assert (says in worker.log) is not can
    assert not site.app.control.ping(timeout=0.5), "a broadcast would have been heard"
