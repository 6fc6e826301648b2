"""A crowd without any fault, and an audit that can fail: what the fault tests rest on."""

import pytest

from jobhandle_celery import JobStatus
from tests.chance import scaled
from tests.faults.crowd import BODIES, Crowd
from tests.faults.rounds import account_for_rounds
from tests.servers import execute
from tests.worker.site import NewSite

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("database", ["postgresql", "sqlite"])
def test_a_crowd_in_peace(new_site: NewSite, database: str) -> None:
    site = new_site(database=database)
    crowd = Crowd(site)
    crowd.submit_mixed(scaled(60), 0.02)
    site.start(BODIES)
    for job_id in crowd.chance.sample(crowd.ids, len(crowd.ids) // 4):
        crowd.cancel(job_id)
    crowd.settle()
    rows = crowd.audit()
    assert {row.status for row in rows.values()} == {"Finished", "Error", "Cancelled"}


def test_the_audit_sees_a_body_that_no_attempt_accounts_for(new_site: NewSite) -> None:
    site = new_site(database="sqlite")
    crowd = Crowd(site)
    [job_id] = crowd.submit([crowd.job("work", 0)])
    site.start(BODIES)
    crowd.settle()
    assert crowd.audit()[job_id].status is JobStatus.FINISHED
    with crowd.path.open("a") as lines:
        lines.write(f"begun {job_id} 2 1 1e10\n")
    with pytest.raises(AssertionError, match=f"job {job_id}"):
        crowd.audit()


def test_the_audit_sees_two_bodies_at_once_and_one_after_a_cancel(new_site: NewSite) -> None:
    site = new_site(database="sqlite")
    crowd = Crowd(site)
    [job_id] = crowd.submit([crowd.job("again", 0.2, 1, 0)])
    site.start(BODIES)
    crowd.settle()
    crowd.audit()
    crowd.prevented[job_id] = crowd.lives()[job_id][0].begun
    with pytest.raises(AssertionError, match="started after its cancel"):
        crowd.audit()
    crowd.prevented.clear()
    written = crowd.path.read_text().splitlines()
    first = [line for line in written if line.split()[2] == "1"]
    first[-1] = " ".join([*first[-1].split()[:-1], "1e10"])
    crowd.path.write_text("\n".join([*first, *written[len(first) :]]) + "\n")
    with pytest.raises(AssertionError, match="two bodies at once"):
        crowd.audit()
    first_life = crowd.lives()[job_id][0]
    crowd.audit(asleep={first_life.pid: first_life.begun})
    with pytest.raises(AssertionError, match="two bodies at once"):
        crowd.audit(asleep={first_life.pid: first_life.begun - 0.001})


def test_the_audit_sees_what_is_started_before_it_is_let_go(new_site: NewSite) -> None:
    site = new_site(database="sqlite")
    crowd = Crowd(site)
    held, ended = crowd.submit([crowd.job("work", 0, status="Waiting"), crowd.job("work", 0)])
    crowd.cancel(ended)
    crowd.release(held)
    crowd.resubmit(ended)
    site.start(BODIES)
    crowd.settle()
    crowd.audit()
    [life], [again] = crowd.lives()[held], crowd.lives()[ended]
    before, crowd.released[held] = crowd.released[held], life.begun + 1
    with pytest.raises(AssertionError, match="started before its release"):
        crowd.audit()
    crowd.released[held] = before
    [(_, since, _)] = crowd.rests
    crowd.rests = [(ended, since, again.begun + 1)]
    with pytest.raises(AssertionError, match=f"job {ended} was cancelled"):
        crowd.audit()


def test_the_audit_and_the_account_see_a_body_that_runs_again_unasked(new_site: NewSite) -> None:
    site = new_site(database="sqlite")
    crowd = Crowd(site)
    crowd.submit([crowd.job("again", 0, 1, 0)])
    site.start(BODIES)
    crowd.settle()
    account_for_rounds(crowd, crowd.audit())
    retry = f"WHERE status_id = {JobStatus.REQUEUED.id}"
    execute(site.database_url, f"UPDATE jobhandle_job_event SET message = 'its worker shut down' {retry}")
    with pytest.raises(AssertionError, match="taken from a living worker"):
        account_for_rounds(crowd, crowd.audit())
    execute(site.database_url, f"DELETE FROM jobhandle_job_event {retry}")
    with pytest.raises(AssertionError, match="Running"):
        crowd.audit()
