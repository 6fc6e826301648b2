"""A database that is hurt again and again, under authors of whole lives of jobs, and under workers.

The fault is at any byte here, not only between requests; so a caller may be told that the database did not
answer, and asks again with the same words, as a worker does.
"""

import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest

from jobhandle_celery import DatabaseUnavailableError
from tests.chance import scaled, stretched
from tests.databases import MariadbDatabases, PostgresqlDatabases, migrate
from tests.faults.crowd import BATCH, BODIES, Crowd, linger, strike_in_each_way
from tests.faults.lives import live_through
from tests.faults.proxy import PostgresqlProxy
from tests.faults.rounds import ALL_WAYS, OWN_ERRORS, account_for_rounds
from tests.servers import MariadbServer, PostgresqlServer
from tests.store.bench import Bench
from tests.worker.site import NewSite

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(stretched(600))]

LEASE = 3
STRIKES = 4
CALM = (0.5, 2.0)
"""Seconds from one strike to the next."""


def test_all_connections_cut_again_and_again_change_nothing(postgresql_url: str) -> None:
    namespace = str(uuid.uuid4())
    beside = Bench(postgresql_url, namespace=namespace)
    with PostgresqlProxy(postgresql_url) as proxy:
        through = Bench(proxy.url, namespace=namespace)
        live_through(through, proxy.cut_all, beside)
        through.close()
    beside.close()


def strikes_at(
    server: PostgresqlServer | MariadbServer, cut: Callable[[], object], last: Callable[[], None]
) -> Sequence[Callable[[], None]]:
    """Return the ways to hurt it; each leaves it running."""

    def crash() -> None:
        server.kill()
        last()
        server.start()

    def restart() -> None:
        server.stop()
        last()
        server.start()

    def silence() -> None:
        server.pause()
        last()
        server.resume()

    def cut_connections() -> None:
        cut()
        last()
        cut()

    return [crash, restart, silence, cut_connections]


@pytest.mark.parametrize(
    ("kind", "broker_url"), [("postgresql", "redis"), ("mariadb", "rabbitmq")], indirect=["broker_url"]
)
def test_a_storm_over_the_database_loses_nothing_and_runs_nothing_twice(
    new_site: NewSite, request: pytest.FixtureRequest, kind: str, broker_url: str
) -> None:
    """Now and then for longer than a lease: nobody could renew meanwhile, so nobody is taken for lost."""
    server = request.getfixturevalue(f"private_{kind}")
    databases = (PostgresqlDatabases if kind == "postgresql" else MariadbDatabases)(server.url)
    url = databases.create_empty()
    migrate(url)
    site = new_site(
        database_url=url,
        broker_url=broker_url,
        settings={"jobhandle_lease": LEASE, "jobhandle_republish_after": 5},
    )
    crowd = Crowd(site)
    for _ in range(scaled(8)):
        crowd.submit_in_all_states(0.2)
    workers = [site.start(BODIES, concurrency=3, ready=False) for _ in range(2)]
    for worker in workers:
        worker.wait_until_ready(60)

    def meanwhile() -> None:
        # What was told that the database did not answer may be there all the same.
        with suppress(DatabaseUnavailableError):
            crowd.stir()

    strikes = strikes_at(
        server, lambda: databases.disconnect(url), lambda: linger(crowd.chance.uniform(0.2, 1.5 * LEASE))
    )
    strike_in_each_way(strikes, STRIKES, CALM, crowd.chance, meanwhile)

    crowd.adopt()
    for job_id in crowd.held():
        crowd.release(job_id)
    crowd.settle()
    assert all(worker.is_running() for worker in workers)
    rows = crowd.audit(lost_before_body=True)
    # A body that asks whether it should stop is told that nobody answers.
    ways = account_for_rounds(crowd, rows, OWN_ERRORS | {"listen": "DatabaseUnavailableError"})
    print(len(rows), "jobs:", dict(ways))
    assert set(ways) == ALL_WAYS
    batches = Counter(row.meta for row in rows.values())
    assert set(batches.values()) == {BATCH}, f"a batch that is there in part: {batches}"
