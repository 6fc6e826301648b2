"""Workers and their children killed again and again: no job is lost, and every attempt is accounted for."""

import signal

import pytest

from tests.chance import scaled, stretched
from tests.faults.crowd import Crowd
from tests.faults.worker_fates import account, any_of, keep, kill_a_child, send, weather
from tests.worker.site import NewSite

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(stretched(300))]

OFTEN = 10**6
# For as long as a lease, the sweep's passes must follow each other within a sixth of it, or nobody is taken
# for lost: a machine that is busy starting workers must manage that.
SETTINGS = {"jobhandle_lease": 6, "jobhandle_republish_after": 2}


@pytest.mark.parametrize(
    ("database_url", "broker_url"),
    [("postgresql", "redis"), ("sqlite", "redis"), ("mariadb", "rabbitmq")],
    indirect=True,
)
def test_what_is_killed_loses_no_job(new_site: NewSite, database_url: str, broker_url: str) -> None:
    site = new_site(database_url=database_url, broker_url=broker_url, settings=SETTINGS)
    crowd = Crowd(site)
    keeper = keep(site)

    def feed() -> None:
        crowd.submit_mixed(15, crowd.chance.uniform(0.05, 0.4), max_attempts=OFTEN)
        crowd.submit_mixed(15, crowd.chance.uniform(0.05, 0.4))

    weather(
        crowd,
        keeper,
        any_of(send(signal.SIGKILL), kill_a_child, kill_a_child),
        (0.1, 0.4),
        feed=feed,
        hits=["the worker % was lost", "the process that ran it was lost"],
        jobs=scaled(60),
    )

    rows = crowd.audit(lost_before_body=True)
    print(len(rows), "jobs:", dict(account(crowd, rows)))
