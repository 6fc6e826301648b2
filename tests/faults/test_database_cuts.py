"""A connection that breaks at any request of a store call leaves rows and answer unchanged.

Cut before a request arrives, the server has done nothing; cut between a commit and its answer, it has done
everything, unanswered; cut while it works, the first call and its retry race.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from jobhandle_celery.store import ClaimRejected, Database, RejectionReason, engine_maker
from jobhandle_celery.store.settling import Settling
from tests.databases import PostgresqlDatabases
from tests.faults.proxy import Cut, PostgresqlProxy
from tests.faults.store_calls import STORE_CALLS
from tests.faults.store_reads import READS
from tests.faults.store_scenes import normalize, remaining_rows, sibling_harness
from tests.store.harness import Harness
from tests.support import eventually

pytestmark = pytest.mark.faults


class JobFactory:
    """A database, reached directly and through a proxy."""

    def __init__(self, url: str, proxy: PostgresqlProxy) -> None:
        self.proxy = proxy
        self.direct, self.through = Harness(url), Harness(proxy.url)

    def close(self) -> None:
        self.through.close()
        self.direct.close()


@pytest.fixture(scope="module")
def base(postgresql_databases: PostgresqlDatabases) -> Iterator[JobFactory]:
    url = postgresql_databases.create()
    with PostgresqlProxy(url) as proxy:
        base = JobFactory(url, proxy)
        yield base
        base.close()
    postgresql_databases.drop(url)


class Play:
    """A scene, run through the proxy in its own namespace, with or without a cut."""

    def __init__(self, base: JobFactory, name: str) -> None:
        self._proxy = base.proxy
        self._direct = sibling_harness(base.direct)
        here = self._direct.settings.namespace
        self._through = Harness(base.through.url, base.through.database, namespace=here)
        self._ask = STORE_CALLS[name](self._direct)

    def act(self, fault: tuple[int, Cut] | None = None) -> tuple[str, list[str]]:
        """Return the caller's answer, and the rows that are there afterwards."""
        # Connect and check the tables first: those requests are not counted.
        self._through.store.queries.status(0)
        with self._proxy.watching(fault):
            answer = normalize(self._ask(self._through.store))
        return answer, remaining_rows(self._direct)


LATE_ANSWERS = {
    # A retry cannot recognise its own earlier success, and no promise rests on its answer.
    "prune": "0",  # how many
    "expire": "0",
    "cancel_selected": "0",
    "claim of an expired one": normalize(ClaimRejected(RejectionReason.CANCELLED)),  # rejected either way
    "begin_pass": "None",  # the pass is skipped; the next follows in an interval
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
    "send_back": "False",  # and the message is rejected, as it would be
    "settle": "0",  # how many became ready: the sweeper publishes them
    "settle of a failure": "0",
    "arm": "0",
    "reserve_unsettled": "0",
}
"""The other answer that the caller may get when the answer to its commit is lost."""

SKIPPING = {"reap", "reserve_due", "reserve_unsettled", "prune", "expire", "unreported_cancels", "arm"}
"""They skip locked rows, also those still locked by their own broken connection."""


def cases() -> list[Any]:
    """Each store call, with a cut at each kind of moment; a read with one."""
    return [
        pytest.param(name, cut, id=f"{name}, cut {cut.name.lower()}")
        for name in STORE_CALLS
        for cut in ([Cut.AFTER] if name in READS else Cut)
        if not cut.silent
    ]


@pytest.mark.parametrize(("name", "cut"), cases())
def test_cut_connection_changes_neither_rows_nor_answer(base: JobFactory, name: str, cut: Cut) -> None:
    answer, rows = Play(base, name).act()
    requests = base.proxy.requests
    assert requests
    late_answers = {answer, LATE_ANSWERS.get(name, answer)}
    for number in range(1, requests + 1):
        cut_off = Play(base, name)
        result, found = cut_off.act((number, cut))
        if not base.proxy.has_cut:
            # The run without a cut had made a retry: PostgreSQL does not wait for a stopped process.
            assert number > 1
            break
        # Before the first request nothing is done; before a later one, a part may be.
        not_done = cut is Cut.BEFORE and number == 1 and name not in SKIPPING
        assert result in ({answer} if not_done else late_answers), f"request {number} of {requests}"
        if name in SKIPPING and found != rows:
            eventually(lambda it=cut_off: it.act()[1] == rows, message=name)  # type: ignore[misc]  # bound
        else:
            assert found == rows, f"request {number} of {requests}"


@pytest.fixture(scope="module")
def silent_factory(base: JobFactory) -> Iterator[JobFactory]:
    """The same, with a statement deadline short enough for a test."""
    database = Database(engine_maker(base.proxy.url), base.through.settings, deadline=1.0)
    silent = JobFactory.__new__(JobFactory)
    silent.proxy, silent.direct = base.proxy, base.direct
    silent.through = Harness(base.proxy.url, database)
    yield silent
    database.close()


@pytest.mark.slow
@pytest.mark.parametrize("cut", [cut for cut in Cut if cut.silent])
@pytest.mark.parametrize("name", [name for name in STORE_CALLS if name not in READS])
def test_silent_connection_is_replaced(silent_factory: JobFactory, name: str, cut: Cut) -> None:
    """Related to mutant 22: the request, or the answer, never arrives, and TCP reports nothing (fault 45)."""
    answer, rows = Play(silent_factory, name).act()
    number = 1 if cut is Cut.SILENT_BEFORE else silent_factory.proxy.requests
    silenced = Play(silent_factory, name)
    result, found = silenced.act((number, cut))
    assert result in {answer, LATE_ANSWERS.get(name, answer)}
    if name in SKIPPING and found != rows:
        eventually(lambda: silenced.act()[1] == rows, message=name)
    else:
        assert found == rows


STEP_BY_STEP = {"settle", "arm", "start_ancestors"}
"""Verbs of `Settling` whose steps are repeated each by itself."""


def test_every_repeatable_verb_has_a_call(base: JobFactory) -> None:
    parts = [type(part) for part in vars(base.direct.store).values() if part is not base.direct.database]
    repeated = {
        name.lstrip("_")
        for part in parts
        for name in dir(part)
        if hasattr(getattr(part, name), "__wrapped__") and not (part is Settling and name.startswith("_"))
    }
    assert {name.split()[0] for name in STORE_CALLS} == repeated | STEP_BY_STEP
