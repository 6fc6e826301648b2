"""A cluster for each kind of broker, with a worker and a Flower; shared by a module."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.flower.process import Flower
from tests.reaper import Reaper
from tests.worker.cluster import Cluster, NewCluster
from tests.worker.conftest import module_cluster
from tests.workers import ROOT, WorkerProcess

__all__ = ["module_cluster"]


def start(cluster: Cluster, **options: Any) -> WorkerProcess:
    """Start a worker that sends events."""
    return cluster.start("tests.flower.bodies:app", arguments=["-E"], **{"concurrency": 1, **options})


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def cluster(request: pytest.FixtureRequest, module_cluster: NewCluster) -> Cluster:
    """A cluster whose worker runs one task at a time."""
    options: dict[str, Any] = {"settings": {"jobhandle_republish_after": 5}}
    if request.param == "rabbitmq":
        options["broker_url"] = request.getfixturevalue("virtual_hosts").create()
    cluster = module_cluster(**options)
    start(cluster, name="stays")
    return cluster


@pytest.fixture(scope="module")
def flower(cluster: Cluster, reaper: Reaper) -> Iterator[Flower]:
    pytest.importorskip("flower")
    flower = Flower(cluster, reaper, {"FLOWER_CONF": str(ROOT / "tasks" / "flowerconfig.py")})
    try:
        flower.wait_until_it_listens()
        yield flower
    finally:
        flower.end()
