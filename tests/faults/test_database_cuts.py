"""A connection that breaks in the middle of a verb, at each word of it: as if nothing had been.

Cut before a request arrives, the server knows nothing of it; cut between a commit and its answer, it has done
everything, and nobody was told; cut while it works, it does both at once: the repeat and the first race.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from jobhandle_celery.store import ClaimRejected, Database, Refusal, engine_maker
from tests.databases import PostgresqlDatabases
from tests.faults.proxy import Cut, PostgresqlProxy
from tests.faults.store_calls import READ_ONLY, STORE_CALLS, normalize, remaining_rows, sibling_bench
from tests.store.harness import Bench
from tests.support import eventually

pytestmark = pytest.mark.faults


class Stage:
    """A database, reached straight and through a proxy."""

    def __init__(self, url: str, proxy: PostgresqlProxy) -> None:
        self.proxy = proxy
        self.direct, self.through = Bench(url), Bench(proxy.url)

    def close(self) -> None:
        self.through.close()
        self.direct.close()


@pytest.fixture(scope="module")
def base(postgresql_databases: PostgresqlDatabases) -> Iterator[Stage]:
    url = postgresql_databases.create()
    with PostgresqlProxy(url) as proxy:
        base = Stage(url, proxy)
        yield base
        base.close()
    postgresql_databases.drop(url)


class Play:
    """A scene, played through the proxy in a namespace of its own, with or without a cut."""

    def __init__(self, base: Stage, name: str) -> None:
        self._proxy = base.proxy
        self._direct = sibling_bench(base.direct)
        here = self._direct.settings.namespace
        self._through = Bench(base.through.url, base.through.database, namespace=here)
        self._ask = STORE_CALLS[name](self._direct)

    def act(self, fault: tuple[int, Cut] | None = None) -> tuple[str, list[str]]:
        """Return what the author was told, and the rows that are there afterwards."""
        self._through.store.queries.status(0)  # connected, and the tables looked at: not what this is about
        with self._proxy.watching(fault):
            answer = normalize(self._ask(self._through.store))
        return answer, remaining_rows(self._direct)


LATE_ANSWERS = {
    # The repeat cannot know of its own earlier success, and no promise rests on its answer.
    "prune": "0",  # how many
    "expire": "0",
    "cancel_selected": "0",
    "claim of an expired one": normalize(ClaimRejected(Refusal.CANCELLED)),  # refused either way
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
    "fail_process": "False",
    "stop_process": "False",
    "send_back": "False",  # and the message is refused, as it would be
}
"""What the author of a verb may be told instead, should the answer to its commit be lost."""

SKIPPING = {"reap", "reserve_due", "prune"}
"""They skip locked rows, also those that the server has not yet unlocked for their own broken connection."""


def cases() -> list[Any]:
    """Each verb, with a cut at each kind of moment; a mere question with one."""
    return [
        pytest.param(name, cut, id=f"{name}, cut {cut.name.lower()}")
        for name in STORE_CALLS
        for cut in ([Cut.AFTER] if name in READ_ONLY else Cut)
        if not cut.silent
    ]


@pytest.mark.parametrize(("name", "cut"), cases())
def test_cut_connection_changes_neither_rows_nor_answer(base: Stage, name: str, cut: Cut) -> None:
    answer, rows = Play(base, name).act()
    requests = base.proxy.requests
    assert requests
    late_answers = {answer, LATE_ANSWERS.get(name, answer)}
    for number in range(1, requests + 1):
        cut_off = Play(base, name)
        result, found = cut_off.act((number, cut))
        if not base.proxy.has_cut:
            # In the calm it had been asked again: PostgreSQL does not wait for a process that stands still.
            assert number > 1
            break
        # Before the first request nothing is done; before a later one, some of it may be.
        not_done = cut is Cut.BEFORE and number == 1 and name not in SKIPPING
        assert result in ({answer} if not_done else late_answers), f"request {number} of {requests}"
        if name in SKIPPING and found != rows:
            eventually(lambda it=cut_off: it.act()[1] == rows, message=name)  # type: ignore[misc]  # bound
        else:
            assert found == rows, f"request {number} of {requests}"


@pytest.fixture(scope="module")
def silent_stage(base: Stage) -> Iterator[Stage]:
    """The same, whose statements have a deadline that a test can wait for."""
    database = Database(engine_maker(base.proxy.url), base.through.settings, deadline=1.0)
    silent = Stage.__new__(Stage)
    silent.proxy, silent.direct = base.proxy, base.direct
    silent.through = Bench(base.proxy.url, database)
    yield silent
    database.close()


@pytest.mark.slow
@pytest.mark.parametrize("cut", [cut for cut in Cut if cut.silent])
@pytest.mark.parametrize("name", [name for name in STORE_CALLS if name not in READ_ONLY])
def test_silent_connection_is_replaced(silent_stage: Stage, name: str, cut: Cut) -> None:
    """Mutant 22's kin: the request, or the answer, never arrives, and TCP says nothing (fault 45)."""
    answer, rows = Play(silent_stage, name).act()
    number = 1 if cut is Cut.SILENT_BEFORE else silent_stage.proxy.requests
    silenced = Play(silent_stage, name)
    result, found = silenced.act((number, cut))
    assert result in {answer, LATE_ANSWERS.get(name, answer)}
    if name in SKIPPING and found != rows:
        eventually(lambda: silenced.act()[1] == rows, message=name)
    else:
        assert found == rows


def test_every_repeatable_verb_has_a_call(base: Stage) -> None:
    parts = [type(part) for part in vars(base.direct.store).values() if part is not base.direct.database]
    repeated = {
        name.lstrip("_")
        for part in parts
        for name in dir(part)
        if hasattr(getattr(part, name), "__wrapped__")
    }
    assert {name.split()[0] for name in STORE_CALLS} == repeated
