"""Trees of hundreds of members while workers, brokers, databases and sweeps fail: each ends, and right."""

import signal
from collections.abc import Callable

import pytest
from celery import group

from jobhandle_celery import JobStatus
from tests.databases import MariadbDatabases, PostgresqlDatabases
from tests.faults.brokers import PrivateBroker
from tests.faults.step_faults import step_runner
from tests.faults.tree_workload import TREE_BODIES, TreeWorkload
from tests.faults.worker_faults import all_ready, kill_a_child, send
from tests.faults.workload import WorkerSupervisor, inject_in_each_way
from tests.rng import scaled, stretched
from tests.support import eventually
from tests.worker.cluster import NewCluster

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(stretched(900))]

STRIKES = 12
CALM = (0.3, 1.5)
"""Seconds from one strike to the next."""
OFTEN = 10**6


@pytest.mark.parametrize(
    ("private_broker", "database_url"),
    [("redis", "postgresql"), ("rabbitmq", "mariadb"), ("redis", "sqlite")],
    indirect=True,
)
def test_trees_end_right_under_repeated_faults(
    new_cluster: NewCluster,
    private_broker: PrivateBroker,
    database_url: str,
    request: pytest.FixtureRequest,
) -> None:
    cluster = new_cluster(
        database_url=database_url,
        broker_url=private_broker.url,
        settings={"jobhandle_lease": 6, "jobhandle_republish_after": 2, "worker_prefetch_multiplier": 4},
    )
    workload = TreeWorkload(cluster)
    size, sign = scaled(120), cluster.new_file()
    held = [workload.step(n, task="held_step", sign=str(sign), max_attempts=OFTEN) for n in range(2)]
    workload.grow(group(held))
    supervisor = WorkerSupervisor(lambda: cluster.start(TREE_BODIES, ready=False, concurrency=3), 2)
    rng = workload.work.rng
    # At least these bodies are lost.
    eventually(lambda: workload.work.count_started() == len(held))
    for canvas in workload.canvases(size, seconds=0.05, max_attempts=OFTEN).values():
        workload.grow(canvas)
    for canvas in workload.canvases(size // 4, seconds=0.05).values():
        workload.grow(canvas)
    for worker in list(supervisor.workers):
        worker.kill()
        supervisor.replace(worker)
    sign.touch()

    def when_ready(inject: Callable[[], object]) -> None:
        if all_ready(supervisor):
            inject()

    with step_runner(cluster, "sweep", settings={"jobhandle_sweep_interval": 0.001}) as sweeps:

        def kill_worker() -> None:
            when_ready(lambda: send(signal.SIGKILL)(supervisor, rng))

        def kill_child() -> None:
            when_ready(lambda: kill_a_child(supervisor, rng))

        def kill_sweep() -> None:
            for _ in range(10):
                print(sweeps.do(rng.randrange(4, 40), signal.SIGKILL))

        def cut_database() -> None:
            kind = database_url.split(":", maxsplit=1)[0].split("+", maxsplit=1)[0]
            if kind != "sqlite":
                databases: PostgresqlDatabases | MariadbDatabases = request.getfixturevalue(
                    f"{kind}_databases"
                )
                databases.disconnect(database_url)

        ways = [kill_worker, kill_child, kill_child, kill_sweep, cut_database, private_broker.lose_messages]
        inject_in_each_way(ways, STRIKES, CALM, rng, lambda: None)

    workload.wait_until_final()
    tally = workload.audit(lost_before_body=True)
    print(dict(tally))
    often = [tree for tree in workload.trees if tree.handle.members()[-1].max_attempts == OFTEN]
    assert {tree.root.status for tree in often} == {JobStatus.FINISHED}
    assert tally["lost"] >= len(held)


@pytest.mark.parametrize("private_broker", ["redis"], indirect=True)
def test_trees_without_faults_run_each_body_once(
    new_cluster: NewCluster, private_broker: PrivateBroker
) -> None:
    cluster = new_cluster(broker_url=private_broker.url)
    workload = TreeWorkload(cluster)
    for canvas in workload.canvases(40).values():
        workload.grow(canvas)
    cluster.start(TREE_BODIES, concurrency=3)
    workload.wait_until_final()
    assert set(workload.audit()) == {"ended", "tree in Finished"}
