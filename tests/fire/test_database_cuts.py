"""A connection that breaks in the middle of a verb, at each word of it: as if nothing had been.

Cut before a request arrives, the server knows nothing of it; cut between a commit and its answer, it has done
everything, and nobody was told; cut while it works, it does both at once: the repeat and the first race.
"""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from jobhandle_celery.store import Refusal, Refused, Store
from tests.databases import PostgresqlDatabases
from tests.fire.proxy import Cut, PostgresqlProxy
from tests.fire.verbs import SCENES, left_behind, plain
from tests.store.bench import Bench
from tests.support import eventually

pytestmark = pytest.mark.fire


@pytest.fixture(scope="module")
def database(postgresql_databases: PostgresqlDatabases) -> Iterator[str]:
    url = postgresql_databases.create()
    yield url
    postgresql_databases.drop(url)


@pytest.fixture(scope="module")
def proxy(database: str) -> Iterator[PostgresqlProxy]:
    with PostgresqlProxy(database) as proxy:
        yield proxy


class Play:
    """A scene, played once through the proxy in a namespace of its own, with or without a cut."""

    def __init__(self, proxy: PostgresqlProxy, database: str, name: str) -> None:
        self.proxy = proxy
        namespace = str(uuid.uuid4())
        self.beside = Bench(database, namespace=namespace)
        self.through = Bench(proxy.url, namespace=namespace)
        self.ask = SCENES[name](self.beside)

    def act(self, fault: tuple[int, Cut] | None = None) -> tuple[str, list[str]]:
        """Return what the author was told, and the rows that are there afterwards."""
        self.through.store.status(0)  # connected, and the tables looked at: not what this is about
        with self.proxy.watching(fault):
            said = plain(self.ask(self.through.store))
        return said, self.rows()

    def rows(self) -> list[str]:
        return left_behind(self.beside)

    def close(self) -> None:
        self.through.close()
        self.beside.close()


TOLD_LATE = {
    # The repeat cannot know of its own earlier success, and no promise rests on its answer.
    "prune": "0",  # how many
    "expire": "0",
    "cancel_selected": "0",
    "claim of an expired one": plain(Refused(Refusal.CANCELLED)),  # refused either way
    "begin_pass": "None",  # the pass is left out; there is another in an interval
    "begin_pass for the first time": "None",
    "reserve": "[]",  # they are due again after the grace
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

SKIPPING = {"reap", "reserve", "prune"}
"""They skip locked rows, also those that the server has not yet unlocked for their own broken connection."""


def cases() -> list[Any]:
    """Each verb, with a cut at each kind of moment."""
    return [pytest.param(name, cut, id=f"{name}, cut {cut.name.lower()}") for name in SCENES for cut in Cut]


@pytest.mark.parametrize(("name", "cut"), cases())
def test_a_cut_changes_neither_the_rows_nor_the_answer(
    proxy: PostgresqlProxy, database: str, name: str, cut: Cut
) -> None:
    calm = Play(proxy, database, name)
    answer, rows = calm.act()
    requests = proxy.requests
    calm.close()
    assert requests
    answers = {answer}
    if cut is not Cut.BEFORE or name in SKIPPING:
        answers.add(TOLD_LATE.get(name, answer))
    for number in range(1, requests + 1):
        cut_off = Play(proxy, database, name)
        said, found = cut_off.act((number, cut))
        assert proxy.has_cut
        assert said in answers, f"request {number} of {requests}"
        if name in SKIPPING and found != rows:
            eventually(lambda it=cut_off: it.act()[1] == rows, message=name)  # type: ignore[misc]  # bound
        else:
            assert found == rows, f"request {number} of {requests}"
        cut_off.close()


def test_every_verb_that_is_asked_again_has_a_scene() -> None:
    repeated = {name.lstrip("_") for name in dir(Store) if hasattr(getattr(Store, name), "__wrapped__")}
    assert {name.split()[0] for name in SCENES} == repeated
