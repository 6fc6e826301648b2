"""Who writes, and who may have been first: every verb after each other one, and in the middle of it.

Every pair of acts meets once, and where their order matters, in every scene in which it matters differently.
Without `-m fire`, the pairs whose order matters meet in one scene each, and one act of each verb in the
middle of each other.
"""

from collections.abc import Iterator
from inspect import getmembers, isfunction, signature

import pytest

from jobhandle_celery.schema import job
from jobhandle_celery.store import Store
from tests.fire.verbs import SCENES as SCENES_OF_VERBS
from tests.fire.verbs import left_behind
from tests.store.acts import ACTS
from tests.store.bench import Bench
from tests.store.pairs import (
    NEVER_AT_ONCE,
    SCENES,
    Worlds,
    changing,
    encounters,
    in_either_order,
    loosely,
    wrong,
)
from tests.store.racing import has_lines, in_line, in_the_middle, steps
from tests.store.world import World, call

VERBS = {act.verb for act in ACTS.values()}
NO_VERBS = {"mine", "selected", "submit_in_session"}
"""Two guards; and a submit in the caller's transaction, which test_after_commit.py looks at."""
_FIRST_OF_EACH_VERB = {act.verb: name for name, act in reversed(ACTS.items())}
ONE_OF_EACH = {*_FIRST_OF_EACH_VERB.values(), "set Error", "set Cancelled"}


@pytest.fixture(scope="module")
def worlds_by_url() -> Iterator[dict[str, Worlds]]:
    worlds: dict[str, Worlds] = {}
    yield worlds
    for one in worlds.values():
        one.bench.close()


@pytest.fixture
def worlds(worlds_by_url: dict[str, Worlds], common_url: str) -> Worlds:
    return worlds_by_url.setdefault(common_url, Worlds(common_url))


def after(world: World, first: str, second: str) -> str:
    calls = call(ACTS[first]), call(ACTS[second])
    world.restore()
    return wrong(world, [world.ask(one) for one in calls], [world.expected(*calls)])


def amid(world: World, first: str, second: str, *, thorough: bool) -> Iterator[tuple[str, str]]:
    """Let an act meet another that is under way; yield how, and what is wrong."""
    world.restore()
    last = steps(world.bench, lambda: world.ask(call(ACTS[second])))
    moments = list(range(2, last + 1))
    for moment in moments if thorough else {*moments[:1], *moments[-1:]}:
        yield f"before step {moment} of {last}", _at_once(world, first, second, moment)
    if has_lines(world.bench) and (thorough or not moments):
        yield "in a line for the row", _at_once(world, first, second, 0)


def _at_once(world: World, first: str, second: str, moment: int) -> str:
    calls = call(ACTS[first]), call(ACTS[second])
    quick, slow = (lambda: world.ask(calls[0])), (lambda: world.ask(calls[1]))
    world.restore()
    if moment:
        said = in_the_middle(world.bench, moment, slow, quick)[::-1]
    else:
        said = in_line(world.bench, job, [quick, slow])
    allowed = [([*map(loosely, answers)], model) for answers, model in in_either_order(world, *calls)]
    return wrong(world, [*map(loosely, said)], allowed)


def failures(worlds: Worlds, second: str, *, thorough: bool, at_once: bool) -> list[str]:
    found = []
    for first, scene in encounters(worlds, second, thorough=thorough):
        world = worlds[scene]
        if not at_once:
            said = {"before": after(world, first, second)}
        elif (first, second) in NEVER_AT_ONCE:
            continue
        elif thorough or {first, second} <= ONE_OF_EACH:
            said = dict(amid(world, first, second, thorough=thorough))
        else:
            continue
        found += [f"{scene}: {first} {how} {second}: {why}" for how, why in said.items() if why]
    return found


@pytest.mark.parametrize("second", ACTS)
def test_whoever_was_first_an_act_does_what_it_must(worlds: Worlds, second: str) -> None:
    assert failures(worlds, second, thorough=False, at_once=False) == []


@pytest.mark.parametrize("second", sorted(ONE_OF_EACH))
def test_whoever_comes_in_the_middle_of_an_act_it_is_as_if_before_or_after_it(
    worlds: Worlds, second: str
) -> None:
    assert failures(worlds, second, thorough=False, at_once=True) == []


@pytest.mark.fire
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("at_once", [False, True], ids=["after", "amid"])
@pytest.mark.parametrize("second", ACTS)
def test_in_every_scene_whoever_was_first(worlds: Worlds, second: str, at_once: bool) -> None:
    assert failures(worlds, second, thorough=True, at_once=at_once) == []


# The table is complete.


def test_every_verb_has_its_acts_or_a_scene_that_shows_that_it_changes_nothing() -> None:
    public = {name for name, it in getmembers(Store, isfunction) if not name.startswith("_")}
    verbs = {name for name in public if "connection" not in signature(getattr(Store, name)).parameters}
    assert verbs - VERBS - {name.split()[0] for name in SCENES_OF_VERBS} == NO_VERBS


@pytest.mark.parametrize("name", [name for name in SCENES_OF_VERBS if name.split()[0] not in VERBS])
def test_what_has_no_act_changes_nothing(bench: Bench, name: str) -> None:
    ask = SCENES_OF_VERBS[name](bench)
    before = left_behind(bench)
    ask(bench.store)
    assert left_behind(bench) == before


@pytest.mark.parametrize("name", ACTS)
def test_every_act_changes_something_in_some_scene(worlds: Worlds, name: str) -> None:
    assert any(name in changing(worlds, scene) for scene in SCENES)
