"""Statements that lock several rows lock them in one order, so that no two wait for each other (fault 48)."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import event, select

from jobhandle_celery.schema import job
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import Selection, control, insert, retrying
from jobhandle_celery.store.records import unique_hash
from tests.store.harness import Bench, new_job
from tests.store.racing import in_the_middle, waiting
from tests.support import eventually

INSERT = "INSERT INTO jobhandle_job ("


@pytest.fixture
def bench(own_server_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench for which a deadlock is an error, not retried, and where PostgreSQL reads no index.

    So it would lock rows in the order in which they were last written.
    """
    monkeypatch.setattr(retrying, "_RETRIES_FOR", 0.0)
    engine = own_server_bench.database.engine
    if engine.dialect.name == "postgresql":
        for name in ("indexscan", "indexonlyscan", "bitmapscan"):
            event.listen(engine, "connect", _switching_off(name))
    return own_server_bench


def _switching_off(name: str) -> Callable[[Any, Any], None]:
    def switch_off(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET enable_{name} = off")

    return switch_off


def test_inserts_of_the_same_keys_do_not_deadlock(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """One has inserted a key when the other comes with both, in the opposite order."""
    monkeypatch.setattr(insert, "MOST_ROWS", 1)  # a statement for each row
    low, high = sorted("ab", key=lambda key: unique_hash(bench.settings.namespace, None, key) or "")

    def submit(*keys: str) -> list[int]:
        jobs = [new_job(unique_key=key) for key in keys]
        return [submitted.job_id for submitted in bench.store.inserter.submit(jobs)]

    first, second = in_the_middle(bench, 2, lambda: submit(low, high), lambda: submit(high, low), INSERT)

    assert first == second[::-1]


def test_keyed_jobs_are_returned_in_the_order_given(bench: Bench) -> None:
    keys = [None, "c", "a", None, "b", "a"]
    submitted = bench.store.inserter.submit([new_job(unique_key=key) for key in keys])
    assert [bench.row(job_id)["unique_key"] for job_id in (new.job_id for new in submitted)] == keys
    assert submitted[5].job_id == submitted[2].job_id
    assert (submitted[2].fresh, submitted[5].fresh) == (True, False)


def test_cancels_of_the_same_ids_do_not_deadlock(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """One has cancelled a job when the other comes with both, in the opposite order."""
    monkeypatch.setattr(control, "MOST_PARAMETERS", 1)  # a statement for each id
    ids = bench.submit(), bench.submit()

    def cancel(ids: tuple[int, ...]) -> int:
        return bench.store.control.cancel_selected(Selection(ids=ids))

    of = "UPDATE jobhandle_job" if bench.database.dialect == "postgresql" else "FOR UPDATE"
    assert in_the_middle(bench, 2, lambda: cancel(ids), lambda: cancel(ids[::-1]), of) == [2, 0]


def note(bench: Bench, ids: list[int]) -> Any:
    """Note that a worker has received these messages; return the worker and its notes."""
    worker, messages = bench.worker(), [bench.message(job_id) for job_id in ids]
    keys = [(message.job_id, message.task_id, message.attempt) for message in messages]
    bench.store.recovery.note_received(keys, worker)
    return worker, keys


def prepare_cancel(bench: Bench, ids: list[int]) -> Callable[[], object]:
    bench.queue(ids[0])  # by the index of the statuses it comes last
    return lambda: bench.store.control.cancel_selected(Selection(statuses=tuple(JobStatus)))


def prepare_reserve(bench: Bench, ids: list[int]) -> Callable[[], object]:
    return lambda: bench.store.outbox.reserve(ids)


def prepare_give_back_all(bench: Bench, ids: list[int]) -> Callable[[], object]:
    worker = bench.worker()
    for job_id in ids:
        bench.run(job_id, worker)
    bench.store.control.cancel(ids[0], None, terminate=False)  # another statement ends it
    return lambda: bench.store.recovery.give_back_all(worker, "the end")


def prepare_clear_received(bench: Bench, ids: list[int]) -> Callable[[], object]:
    worker, keys = note(bench, ids)
    return lambda: bench.store.recovery.clear_received(keys, worker)


def prepare_retire(bench: Bench, ids: list[int]) -> Callable[[], object]:
    worker, _ = note(bench, ids)
    return lambda: bench.store.leases.retire(worker)


@pytest.mark.parametrize(
    "prepare",
    [prepare_cancel, prepare_reserve, prepare_give_back_all, prepare_clear_received, prepare_retire],
)
def test_rows_are_locked_in_the_order_of_their_ids(
    bench: Bench, prepare: Callable[[Bench, list[int]], Callable[[], object]]
) -> None:
    """While the second row is locked by another transaction, the first one is locked and the third is not."""
    ids = [bench.submit() for _ in range(3)]
    change = prepare(bench, ids)
    for job_id in reversed(ids):
        bench.write(job_id, priority=1)
    unlocked = select(job.c.id).with_for_update(skip_locked=True, key_share=True)
    with ThreadPoolExecutor(1) as pool:
        with bench.database.transaction() as db:
            db.execute(select(job.c.id).where(job.c.id == ids[1]).with_for_update())
            changing = pool.submit(change)
            eventually(lambda: waiting(bench) or changing.done(), 30)
            assert not changing.done()
            with bench.database.transaction() as other:
                free = [job_id for job_id in ids if other.execute(unlocked.where(job.c.id == job_id)).first()]
        changing.result(timeout=60)
    assert free == [ids[2]]
