"""Workers and their children killed again and again: no job is lost, and every attempt is accounted for."""

import signal

import pytest

from tests.fire.crowd import Crowd, scaled
from tests.fire.worker_fates import Strike, account, keep, kill_a_child, send, weather
from tests.worker.site import NewSite

pytestmark = [pytest.mark.fire, pytest.mark.slow, pytest.mark.timeout(300)]

OFTEN = 10**6
SETTINGS = {"jobhandle_lease": 2, "jobhandle_patience": 2}


@pytest.mark.parametrize(
    ("strike", "calm", "hit", "database"),
    [
        (kill_a_child, (0.1, 0.5), "the process that ran it was lost", "postgresql"),
        (send(signal.SIGKILL), (0.1, 0.5), "the worker % was lost", "postgresql"),
        (send(signal.SIGKILL), (0.1, 0.5), "the worker % was lost", "sqlite"),
    ],
    ids=["children", "workers", "workers on SQLite"],
)
def test_what_is_killed_loses_no_job(
    new_site: NewSite, strike: Strike, calm: tuple[float, float], hit: str, database: str
) -> None:
    site = new_site(database=database, settings=SETTINGS)
    crowd = Crowd(site)
    keeper = keep(site)

    def feed() -> None:
        crowd.submit_mixed(15, crowd.chance.uniform(0.05, 0.4), max_attempts=OFTEN)
        crowd.submit_mixed(15, crowd.chance.uniform(0.05, 0.4))

    weather(crowd, keeper, strike, calm, feed=feed, hits=[hit], jobs=scaled(80))

    rows = crowd.audit(lost_before_body=True)
    print(len(rows), "jobs:", dict(account(crowd, rows)))
