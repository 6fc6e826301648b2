"""A connection breaks at any step of a store call: the call is retried, at once or later, or never.

After a retry the outcome is that of one call, but the answer may say that it was done already. Without a
retry, all has happened or nothing. With faults, in every scene that the call changes: a long run makes all,
others a random sample.
"""

from collections.abc import Iterable, Iterator
from itertools import count, product

import pytest

from tests.databases import MARIADB_WITH_FAULTS
from tests.rng import sample, stretched
from tests.store.assertions import look
from tests.store.cutting import Cut, Cutter, Died
from tests.store.interleavings import ONE_OF_EACH, SCENES, Worlds, changing, wrong
from tests.store.operations import ACTS
from tests.store.scenario import Call, World, call

DRAWN = 2
"""Sampled cuts of each act; there are up to eighty."""
Break = tuple[str, bool, bool]
"""A scene; whether the server has made the step; whether the process dies without a retry."""


class Crashes:
    """The worlds on one database, and the cutter of its connections."""

    def __init__(self, url: str) -> None:
        self.worlds = Worlds(url)
        self.cutter = Cutter(self.worlds.harness.database.engine)


@pytest.fixture(scope="module")
def crashes_by_url() -> Iterator[dict[str, Crashes]]:
    crashes: dict[str, Crashes] = {}
    yield crashes
    for crash in crashes.values():
        crash.worlds.harness.close()


@pytest.fixture
def crashes(crashes_by_url: dict[str, Crashes], common_url: str) -> Crashes:
    if common_url not in crashes_by_url:
        crashes_by_url[common_url] = Crashes(common_url)
    return crashes_by_url[common_url]


def failures(crashes: Crashes, name: str, breaks: Iterable[Break]) -> list[str]:
    """Break an act at each of its steps; return the differences."""
    found = []
    for scene, done, dies in breaks:
        world = crashes.worlds[scene]
        for step in count(1):
            cut = Cut(step, done, dies)
            world.restore()
            why = _broken(world, crashes.cutter, call(ACTS[name]), cut)
            if not crashes.cutter.has_cut:
                break
            if why:
                found.append(f"{scene}: {name}: {cut}: {why}")
    return found


def _broken(world: World, cutter: Cutter, call: Call, cut: Cut) -> str:
    allowed = [world.expected(call)]
    try:
        with cutter.cutting(cut):
            given = [world.ask(call)]
    except Died:
        found = look(world.harness)
        happened = [
            calls for calls in ([], [call]) if not world.disagreement(world.expected(*calls)[1], found)
        ]
        allowed = [world.expected(*calls, call) for calls in happened]
        given = [world.ask(call)]
        if not happened:
            return "it is half done"
    else:
        if cutter.has_cut and cut.done:
            allowed += [([answer], allowed[0][1]) for answer in call[0].repeated]
    return wrong(world, given, [(answers[-1:], model) for answers, model in allowed])


def scenes_of(crashes: Crashes, name: str) -> list[str]:
    return [scene for scene in SCENES if name in changing(crashes.worlds, scene)]


@pytest.mark.faults
@pytest.mark.parametrize("common_url", MARIADB_WITH_FAULTS, indirect=True)
@pytest.mark.parametrize("name", sorted(ONE_OF_EACH))
def test_broken_connection_leaves_no_trace(crashes: Crashes, name: str) -> None:
    # After each step; before the next one would be the same to the server.
    breaks = product(scenes_of(crashes, name)[:1], [True], [False, True])
    assert failures(crashes, name, breaks) == []


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(stretched(600))
@pytest.mark.parametrize("name", ACTS)
def test_broken_connection_leaves_no_trace_in_any_scene(crashes: Crashes, name: str) -> None:
    breaks = list(product(scenes_of(crashes, name), [False, True], [False, True]))
    assert failures(crashes, name, sample(breaks, DRAWN, name)) == []
