"""Workers asked to end in mid-body again and again, warm, cold and softly: no attempt is lost."""

import signal

import pytest

from tests.chance import scaled, stretched
from tests.faults.crowd import Crowd
from tests.faults.worker_fates import account, keep, send, weather
from tests.worker.site import NewSite

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(stretched(300))]

SETTINGS = {"jobhandle_lease": 2, "jobhandle_republish_after": 2}
CALM = (0.1, 0.5)


def test_a_warm_shutdown_takes_nothing_away_from_any_body(new_site: NewSite) -> None:
    site = new_site(settings=SETTINGS)
    crowd = Crowd(site)
    keeper = keep(site)

    weather(
        crowd,
        keeper,
        send(signal.SIGTERM),
        CALM,
        feed=lambda: crowd.submit_mixed(30, 0.3),
        hits=[],
        jobs=scaled(60),
        strikes=3,
    )

    assert sum("Warm shutdown" in worker.log for worker in site.workers) >= 2
    tally = account(crowd, crowd.audit())
    print(dict(tally))
    assert set(tally) <= {"ended", "stopped"}, tally


@pytest.mark.parametrize("timeout", [0, 0.5], ids=["cold", "soft"])
def test_a_cold_or_soft_shutdown_gives_back_what_it_cuts_off(new_site: NewSite, timeout: float) -> None:
    site = new_site(settings=SETTINGS | {"worker_soft_shutdown_timeout": timeout})
    crowd = Crowd(site)
    keeper = keep(site)

    weather(
        crowd,
        keeper,
        send(signal.SIGQUIT),
        CALM,
        feed=lambda: crowd.submit_mixed(20, crowd.chance.uniform(0.1, 1 + timeout)),
        hits=["cut it off"],
        jobs=scaled(40),
    )

    rows = crowd.audit(lost_before_body=True)
    tally = account(crowd, rows)
    print(len(rows), "jobs:", dict(tally))
    assert not tally["lost"], tally
