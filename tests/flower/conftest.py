"""A site for each kind of broker, with a worker and a Flower; shared by a module."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.flower.process import Flower
from tests.reaper import Reaper
from tests.worker.conftest import module_site
from tests.worker.site import NewSite, Site
from tests.workers import ROOT, WorkerProcess

__all__ = ["module_site"]


def start(site: Site, **options: Any) -> WorkerProcess:
    """Start a worker that sends events."""
    return site.start("tests.flower.bodies:app", arguments=["-E"], **{"concurrency": 1, **options})


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def site(request: pytest.FixtureRequest, module_site: NewSite) -> Site:
    """A site whose worker runs one task at a time."""
    options: dict[str, Any] = {"settings": {"jobhandle_republish_after": 5}}
    if request.param == "rabbitmq":
        options["broker_url"] = request.getfixturevalue("virtual_hosts").create()
    site = module_site(**options)
    start(site, name="stays")
    return site


@pytest.fixture(scope="module")
def flower(site: Site, reaper: Reaper) -> Iterator[Flower]:
    pytest.importorskip("flower")
    flower = Flower(site, reaper, {"FLOWER_CONF": str(ROOT / "tasks" / "flowerconfig.py")})
    try:
        flower.wait_until_it_listens()
        yield flower
    finally:
        flower.end()
