"""Every store call after every other, and in the middle of it.

Every pair of acts is run, and where the order matters, in every scene in which it matters differently: all in
a long run, otherwise a random sample. In CI, one act of each call, in one scene, on SQLite one after the
other. (On SQLite a call in the middle would wait.) By default, only the table of acts is checked.
"""

from collections.abc import Iterator
from functools import cache
from inspect import getmembers, isfunction

import pytest

from jobhandle_celery.schema import job
from tests.databases import MARIADB_WITH_FAULTS
from tests.faults.store_calls import STORE_CALLS
from tests.faults.store_scenes import remaining_rows
from tests.faults.store_trees import TREES
from tests.rng import sample, stretched
from tests.store.harness import Harness
from tests.store.interleavings import (
    NEVER_AT_ONCE,
    ONE_OF_EACH,
    SCENES,
    Encounter,
    Worlds,
    all_encounters,
    changing,
    in_either_order,
    loosely,
    some_encounters,
    wrong,
)
from tests.store.operations import ACTS
from tests.store.racing import has_lines, in_line, in_the_middle, steps
from tests.store.scenario import World, call

VERBS = {act.verb for act in ACTS.values()}
IN_STEPS_AND_AT_ONCE = ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]
"""A database that runs a transition in steps, as MariaDB does, and one that runs it at once."""
DRAWN = 4
"""Sampled encounters of each act; there are about eighty."""
DRAWN_OF_SOME = 4
"""The same of one act of each call, in one scene; there are up to thirty."""
NO_VERBS = {"submit_in_session", "is_crowded"}
"""A submit in the caller's transaction, see test_after_commit.py; and what a process remembers of settles."""

UNMODELLED = {"claim_many", "finish_many", *(name.split()[0] for name in TREES)}
"""Calls that the model does not have: see test_claim_many.py and test_finish_many.py (a row that is locked
then stays as it is), test_trees.py, and the suites of cuts."""


@pytest.fixture(scope="module")
def worlds_by_url() -> Iterator[dict[str, Worlds]]:
    worlds: dict[str, Worlds] = {}
    yield worlds
    for world in worlds.values():
        world.harness.close()


@pytest.fixture
def worlds(worlds_by_url: dict[str, Worlds], common_url: str) -> Worlds:
    return worlds_by_url.setdefault(common_url, Worlds(common_url))


@pytest.fixture
def worlds_on_a_server(worlds_by_url: dict[str, Worlds], common_server_url: str) -> Worlds:
    return worlds_by_url.setdefault(common_server_url, Worlds(common_server_url))


def after(world: World, first: str, second: str) -> str:
    calls = call(ACTS[first]), call(ACTS[second])
    world.restore()
    return wrong(world, [world.ask(call) for call in calls], [world.expected(*calls)])


@cache
def length(world: World, name: str) -> int:
    """Return how many steps an act has."""
    world.restore()
    return steps(world.harness, lambda: world.ask(call(ACTS[name])))


def amid(world: World, first: str, second: str, *, all_moments: bool) -> Iterator[tuple[str, str]]:
    """Run an act in the middle of another; yield the moment and the differences."""
    last = length(world, second)
    moments = list(range(2, last + 1))
    for moment in moments if all_moments else {*moments[:1], *moments[-1:]}:
        yield f"before step {moment} of {last}", _at_once(world, first, second, moment)
    if has_lines(world.harness) and (all_moments or not moments):
        yield "in a line for the row", _at_once(world, first, second, 0)


def _at_once(world: World, first: str, second: str, moment: int) -> str:
    calls = call(ACTS[first]), call(ACTS[second])
    quick, slow = (lambda: world.ask(calls[0])), (lambda: world.ask(calls[1]))
    world.restore()
    if moment:
        seen = in_the_middle(world.harness, moment, slow, quick)[::-1]
    else:
        seen = in_line(world.harness, job, [quick, slow])
    allowed = [([*map(loosely, answers)], model) for answers, model in in_either_order(world, *calls)]
    return wrong(world, [*map(loosely, seen)], allowed)


def failures_after(worlds: Worlds, second: str, met: list[Encounter]) -> list[str]:
    return [
        f"{encounter.scene}: {encounter.first} before {second}: {why}"
        for encounter in met
        if (why := after(worlds[encounter.scene], encounter.first, second))
    ]


def failures_amid(worlds: Worlds, second: str, met: list[Encounter], *, all_moments: bool) -> list[str]:
    return [
        f"{encounter.scene}: {encounter.first} {how} {second}: {why}"
        for encounter in met
        if (encounter.first, second) not in NEVER_AT_ONCE
        for how, why in amid(
            worlds[encounter.scene],
            encounter.first,
            second,
            all_moments=all_moments and encounter.order_matters,
        )
        if why
    ]


@pytest.mark.faults
@pytest.mark.parametrize("common_url", IN_STEPS_AND_AT_ONCE, indirect=True)
@pytest.mark.parametrize("second", sorted(ONE_OF_EACH))
def test_operations_in_either_order_match_the_model(worlds: Worlds, second: str) -> None:
    assert failures_after(worlds, second, some_encounters(worlds, second)) == []


@pytest.mark.faults
@pytest.mark.parametrize("common_server_url", MARIADB_WITH_FAULTS[1:], indirect=True)
@pytest.mark.parametrize("second", sorted(ONE_OF_EACH))
def test_interleaved_operations_are_serializable(worlds_on_a_server: Worlds, second: str) -> None:
    met = sample(some_encounters(worlds_on_a_server, second), DRAWN_OF_SOME, second)
    assert failures_amid(worlds_on_a_server, second, met, all_moments=False) == []


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(stretched(1200))
@pytest.mark.parametrize("second", ACTS)
def test_operations_in_order_match_the_model_in_all_scenes(worlds: Worlds, second: str) -> None:
    assert failures_after(worlds, second, sample(all_encounters(worlds, second), DRAWN, second)) == []


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(stretched(1200))
@pytest.mark.parametrize("second", ACTS)
def test_interleaved_operations_are_serializable_in_all_scenes(worlds: Worlds, second: str) -> None:
    met = sample(all_encounters(worlds, second), DRAWN, second)
    assert failures_amid(worlds, second, met, all_moments=True) == []


# The table is complete.


def test_every_method_has_operations_or_a_scene(harness: Harness) -> None:
    parts = [type(part) for part in vars(harness.store).values() if part is not harness.database]
    methods = {name for part in parts for name, _ in getmembers(part, isfunction) if name[0] != "_"}
    assert methods - VERBS - {name.split()[0] for name in STORE_CALLS} == NO_VERBS


@pytest.mark.parametrize("name", [name for name in STORE_CALLS if name.split()[0] not in VERBS | UNMODELLED])
def test_method_without_operation_changes_nothing(harness: Harness, name: str) -> None:
    ask = STORE_CALLS[name](harness)
    before = remaining_rows(harness)
    ask(harness.store)
    assert remaining_rows(harness) == before


@pytest.mark.parametrize("common_url", ["sqlite"], indirect=True)  # the model decides, on no database
@pytest.mark.parametrize("name", ACTS)
def test_every_operation_changes_something_in_some_scene(worlds: Worlds, name: str) -> None:
    assert any(name in changing(worlds, scene) for scene in SCENES)
