"""A database with repeated faults, under clients that run whole job lives and under workers.

The fault is at any byte here, not only between requests; so a call may fail because the database did not
answer, and is repeated with the same arguments, as a worker does.
"""

import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest

from jobhandle_celery import DatabaseUnavailableError
from tests.databases import MariadbDatabases, PostgresqlDatabases, migrate
from tests.faults.lifecycles import run_jobs_under_cuts
from tests.faults.proxy import PostgresqlProxy
from tests.faults.rounds import ALL_WAYS, OWN_ERRORS, account_for_rounds
from tests.faults.workload import BATCH, BODIES, Workload, hold, inject_in_each_way
from tests.rng import scaled, stretched
from tests.servers import MariadbServer, PostgresqlServer
from tests.store.harness import Harness
from tests.worker.cluster import NewCluster

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(stretched(900))]

LEASE = 3
STRIKES = 4
CALM = (0.5, 2.0)
"""Seconds from one strike to the next."""


def test_connections_cut_repeatedly_change_nothing(postgresql_url: str) -> None:
    namespace = str(uuid.uuid4())
    beside = Harness(postgresql_url, namespace=namespace)
    with PostgresqlProxy(postgresql_url) as proxy:
        through = Harness(proxy.url, namespace=namespace)
        run_jobs_under_cuts(through, proxy.cut_all, beside)
        through.close()
    beside.close()


def strikes_at(
    server: PostgresqlServer | MariadbServer, cut: Callable[[], object], last: Callable[[], None]
) -> Sequence[Callable[[], None]]:
    """Return the faults; each leaves the database running."""

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
def test_repeated_database_faults_lose_and_repeat_no_job(
    new_cluster: NewCluster, request: pytest.FixtureRequest, kind: str, broker_url: str
) -> None:
    """Some faults outlast a lease: no worker could renew meanwhile, so none is declared lost."""
    server = request.getfixturevalue(f"private_{kind}")
    databases = (PostgresqlDatabases if kind == "postgresql" else MariadbDatabases)(server.url)
    url = databases.create_empty()
    migrate(url)
    cluster = new_cluster(
        database_url=url,
        broker_url=broker_url,
        settings={"jobhandle_lease": LEASE, "jobhandle_republish_after": 5},
    )
    workload = Workload(cluster)
    for _ in range(scaled(8)):
        workload.submit_in_all_states(0.2)
    workers = [cluster.start(BODIES, concurrency=3, ready=False) for _ in range(2)]
    for worker in workers:
        worker.wait_until_ready()

    def meanwhile() -> None:
        # A submit that raised "did not answer" may be stored all the same.
        with suppress(DatabaseUnavailableError):
            workload.act_at_random()

    times = strikes_at(
        server, lambda: databases.disconnect(url), lambda: hold(workload.rng.uniform(0.2, 1.5 * LEASE))
    )
    inject_in_each_way(times, STRIKES, CALM, workload.rng, meanwhile)

    workload.adopt_all_jobs()
    for job_id in workload.held():
        workload.release(job_id)
    workload.wait_until_final()
    assert all(worker.is_running() for worker in workers)
    rows = workload.audit(lost_before_body=True)
    # In a body, `cancel_requested` raises while the database does not answer.
    ways = account_for_rounds(workload, rows, OWN_ERRORS | {"listen": "DatabaseUnavailableError"})
    print(len(rows), "jobs:", dict(ways))
    assert set(ways) == ALL_WAYS
    batches = Counter(row.meta for row in rows.values())
    assert set(batches.values()) == {BATCH}, f"a batch that is there in part: {batches}"
