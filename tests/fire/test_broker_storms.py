"""A broker that is hurt every few seconds, at random moments, under a mixed crowd with two workers."""

from collections.abc import Callable, Sequence

import pytest

from tests.chance import stretched
from tests.fire.brokers import PrivateBroker
from tests.fire.crowd import BODIES, Crowd, Keeper, linger, strike_in_each_way
from tests.support import eventually
from tests.worker.site import NewSite

pytestmark = [pytest.mark.fire, pytest.mark.slow, pytest.mark.timeout(stretched(900))]

STRIKES = 5
CALM = (0.5, 3.0)
"""Seconds from one strike to the next."""


def strikes_at(broker: PrivateBroker, linger: Callable[[], None]) -> Sequence[Callable[[], None]]:
    """Return the ways to hurt it; each leaves it running."""

    def restart() -> None:
        broker.kill()
        linger()
        broker.start()

    def restart_with_nothing() -> None:
        broker.kill()
        linger()
        broker.start_with_nothing()

    def silence() -> None:
        broker.pause()
        linger()
        broker.resume()

    def lose_messages_twice() -> None:
        broker.lose_messages()
        linger()
        broker.lose_messages()

    return [restart, restart_with_nothing, silence, lose_messages_twice, broker.cut_connections]


def test_a_storm_over_the_broker_loses_nothing_and_runs_nothing_twice(
    new_site: NewSite, private_broker: PrivateBroker
) -> None:
    site = new_site(
        broker_url=private_broker.url,
        settings={
            "jobhandle_patience": 2,
            "worker_prefetch_multiplier": 4,
            "broker_heartbeat": 4,
            "broker_transport_options": {
                "visibility_timeout": 4,
                "unacked_restore_interval": 1,
                "unacked_restore_throttle": 1,
            },
        },
    )
    crowd = Crowd(site)
    keeper = Keeper(lambda: site.start(BODIES, ready=False), 2)
    ways = strikes_at(private_broker, lambda: linger(crowd.chance.uniform(0.2, 2)))

    def meanwhile() -> None:
        new = crowd.submit_mixed(10, crowd.chance.uniform(0, 0.5))
        crowd.cancel(crowd.chance.choice(new))
        crowd.cancel(crowd.chance.choice(crowd.ids))
        tend(keeper)

    strike_in_each_way(ways, STRIKES, CALM, crowd.chance, meanwhile)

    def settled() -> bool:
        tend(keeper)
        return not crowd.unfinished()

    eventually(settled, 240)
    crowd.audit(lost_before_body=True)


def tend(keeper: Keeper) -> None:
    """Start a worker in the place of one that has ended: Celery's do when a Redis dies that has messages."""
    for worker in list(keeper.workers):
        if not worker.is_running():
            keeper.replace(worker)
