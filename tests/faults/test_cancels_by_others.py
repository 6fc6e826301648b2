"""`control.revoke`, by which other tools end tasks, hitting a crowd again and again."""

from collections.abc import Sequence
from typing import Any

import pytest

from jobhandle_celery import JobStatus
from tests.chance import scaled, stretched
from tests.faults.crowd import BODIES, Crowd, storm
from tests.faults.worker_fates import RESULTS
from tests.worker.site import NewSite, Site

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(stretched(300))]


def test_revokes_leave_every_job_with_a_true_end(new_site: NewSite) -> None:
    site = new_site(settings={"jobhandle_lease": 2, "jobhandle_republish_after": 2})
    crowd = Crowd(site)
    ids = crowd.submit_mixed(scaled(70), 0.5)
    for _ in range(2):
        site.start(BODIES, concurrency=3, ready=False)

    def strike() -> None:
        running = [job.id for job in site.jobs.find(ids=ids, status=JobStatus.RUNNING) if job.id]
        some = [crowd.chance.choice(running or ids), crowd.chance.choice(ids)]
        options: list[dict[str, Any]] = [{}, {"terminate": True}, {"terminate": True, "signal": "SIGKILL"}]
        site.app.control.revoke(task_ids(site, some), **crowd.chance.choice(options))

    with storm(strike, (0.1, 0.5), crowd.chance):
        crowd.settle()

    rows = crowd.audit(lost_before_body=True)
    by_force = [row for row in rows.values() if "its process was terminated" in row.message]
    assert by_force, "the storm hit no body"
    for row in rows.values():
        if row.status is JobStatus.FINISHED:
            assert row.result == RESULTS[row.task.removeprefix("worker.")]
        elif row.status is JobStatus.ERROR:
            assert row.error is not None
            assert (row.task, row.error.type) == ("worker.fail", "ValueError")
        else:
            assert row in by_force or row.cancel_requested is not None

    # What has ended stays so, and workers that were told of it run other jobs as ever.
    site.app.control.revoke(task_ids(site, ids), terminate=True)
    others = crowd.submit([crowd.job("work", 0) for _ in range(20)])
    crowd.settle()
    after = crowd.audit(lost_before_body=True)
    assert {job_id: after[job_id] for job_id in ids} == rows
    assert {after[job_id].status for job_id in others} == {JobStatus.FINISHED}


def task_ids(site: Site, ids: Sequence[int]) -> list[str]:
    return [str(job.task_id) for job in site.jobs.find(ids=ids, limit=10_000)]
