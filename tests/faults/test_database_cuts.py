"""A connection that breaks in the middle of a verb, at each word of it: as if nothing had been.

Cut before a request arrives, the server knows nothing of it; cut between a commit and its answer, it has done
everything, and nobody was told; cut while it works, it does both at once: the repeat and the first race.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from jobhandle_celery.store import ClaimRejected, Database, Refusal, Store, engine_maker
from tests.databases import PostgresqlDatabases
from tests.faults.proxy import Cut, PostgresqlProxy
from tests.faults.verbs import READS, SCENES, beside, left_behind, plain
from tests.store.bench import Bench
from tests.support import eventually

pytestmark = pytest.mark.faults


class Stage:
    """A database, reached straight and through a proxy."""

    def __init__(self, url: str, proxy: PostgresqlProxy) -> None:
        self.proxy = proxy
        self.beside, self.through = Bench(url), Bench(proxy.url)

    def close(self) -> None:
        self.through.close()
        self.beside.close()


@pytest.fixture(scope="module")
def stage(postgresql_databases: PostgresqlDatabases) -> Iterator[Stage]:
    url = postgresql_databases.create()
    with PostgresqlProxy(url) as proxy:
        stage = Stage(url, proxy)
        yield stage
        stage.close()
    postgresql_databases.drop(url)


class Play:
    """A scene, played through the proxy in a namespace of its own, with or without a cut."""

    def __init__(self, stage: Stage, name: str) -> None:
        self._proxy = stage.proxy
        self._beside = beside(stage.beside)
        here = self._beside.settings.namespace
        self._through = Bench(stage.through.url, stage.through.database, namespace=here)
        self._ask = SCENES[name](self._beside)

    def act(self, fault: tuple[int, Cut] | None = None) -> tuple[str, list[str]]:
        """Return what the author was told, and the rows that are there afterwards."""
        self._through.store.queries.status(0)  # connected, and the tables looked at: not what this is about
        with self._proxy.watching(fault):
            said = plain(self._ask(self._through.store))
        return said, left_behind(self._beside)


TOLD_LATE = {
    # The repeat cannot know of its own earlier success, and no promise rests on its answer.
    "prune": "0",  # how many
    "expire": "0",
    "cancel_selected": "0",
    "claim of an expired one": plain(ClaimRejected(Refusal.CANCELLED)),  # refused either way
    "begin_pass": "None",  # the pass is left out; there is another in an interval
    "begin_pass for the first time": "None",
    "reserve_due": "[]",  # they are due again after the grace
    "lose": "[]",  # only logged
    "lose with attempts left": "[]",
    "lose of one asked to stop": "[]",
    "give_back": "[]",
    "give_back_all": "[]",
    "reap": "[]",
    "renew for the first time": "True",
    "fail_seat": "False",
    "stop_seat": "False",
    "send_back": "False",  # and the message is refused, as it would be
}
"""What the author of a verb may be told instead, should the answer to its commit be lost."""

SKIPPING = {"reap", "reserve_due", "prune"}
"""They skip locked rows, also those that the server has not yet unlocked for their own broken connection."""


def cases() -> list[Any]:
    """Each verb, with a cut at each kind of moment; a mere question with one."""
    return [
        pytest.param(name, cut, id=f"{name}, cut {cut.name.lower()}")
        for name in SCENES
        for cut in ([Cut.AFTER] if name in READS else Cut)
        if not cut.silent
    ]


@pytest.mark.parametrize(("name", "cut"), cases())
def test_a_cut_changes_neither_the_rows_nor_the_answer(stage: Stage, name: str, cut: Cut) -> None:
    answer, rows = Play(stage, name).act()
    requests = stage.proxy.requests
    assert requests
    told_late = {answer, TOLD_LATE.get(name, answer)}
    for number in range(1, requests + 1):
        cut_off = Play(stage, name)
        said, found = cut_off.act((number, cut))
        if not stage.proxy.has_cut:
            # In the calm it had been asked again: PostgreSQL does not wait for a process that stands still.
            assert number > 1
            break
        # Before the first request nothing is done; before a later one, some of it may be.
        not_done = cut is Cut.BEFORE and number == 1 and name not in SKIPPING
        assert said in ({answer} if not_done else told_late), f"request {number} of {requests}"
        if name in SKIPPING and found != rows:
            eventually(lambda it=cut_off: it.act()[1] == rows, message=name)  # type: ignore[misc]  # bound
        else:
            assert found == rows, f"request {number} of {requests}"


@pytest.fixture(scope="module")
def silent_stage(stage: Stage) -> Iterator[Stage]:
    """The same, whose statements have a deadline that a test can wait for."""
    database = Database(engine_maker(stage.proxy.url), stage.through.settings, deadline=1.0)
    silent = Stage.__new__(Stage)
    silent.proxy, silent.beside = stage.proxy, stage.beside
    silent.through = Bench(stage.proxy.url, database)
    yield silent
    database.close()


@pytest.mark.slow
@pytest.mark.parametrize("cut", [cut for cut in Cut if cut.silent])
@pytest.mark.parametrize("name", [name for name in SCENES if name not in READS])
def test_a_connection_that_falls_silent_is_replaced(silent_stage: Stage, name: str, cut: Cut) -> None:
    """Mutant 22's kin: the request, or the answer, never arrives, and TCP says nothing (fault 45)."""
    answer, rows = Play(silent_stage, name).act()
    number = 1 if cut is Cut.SILENT_BEFORE else silent_stage.proxy.requests
    silenced = Play(silent_stage, name)
    said, found = silenced.act((number, cut))
    assert said in {answer, TOLD_LATE.get(name, answer)}
    if name in SKIPPING and found != rows:
        eventually(lambda: silenced.act()[1] == rows, message=name)
    else:
        assert found == rows


def test_every_verb_that_is_asked_again_has_a_scene() -> None:
    repeated = {name.lstrip("_") for name in dir(Store) if hasattr(getattr(Store, name), "__wrapped__")}
    assert {name.split()[0] for name in SCENES} == repeated
