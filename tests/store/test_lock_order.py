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
from tests.store.harness import Harness, new_job
from tests.store.racing import in_the_middle, waiting
from tests.support import eventually

INSERT = "INSERT INTO jobhandle_job ("


@pytest.fixture
def harness(own_server_harness: Harness, monkeypatch: pytest.MonkeyPatch) -> Harness:
    """A harness for which a deadlock is an error, not retried, and where PostgreSQL reads no index.

    So it would lock rows in the order in which they were last written.
    """
    monkeypatch.setattr(retrying, "_RETRIES_FOR", 0.0)
    engine = own_server_harness.database.engine
    if engine.dialect.name == "postgresql":
        for name in ("indexscan", "indexonlyscan", "bitmapscan"):
            event.listen(engine, "connect", _switching_off(name))
    return own_server_harness


def _switching_off(name: str) -> Callable[[Any, Any], None]:
    def switch_off(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET enable_{name} = off")

    return switch_off


def test_inserts_of_the_same_keys_do_not_deadlock(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """One has inserted a key when the other comes with both, in the opposite order."""
    monkeypatch.setattr(insert, "MAX_ROWS", 1)  # a statement for each row
    low, high = sorted("ab", key=lambda key: unique_hash(harness.settings.namespace, None, key) or "")

    def submit(*keys: str) -> list[int]:
        jobs = [new_job(unique_key=key) for key in keys]
        return [submitted.job_id for submitted in harness.store.inserter.submit(jobs)]

    first, second = in_the_middle(harness, 2, lambda: submit(low, high), lambda: submit(high, low), INSERT)

    assert first == second[::-1]


def test_keyed_jobs_are_returned_in_the_order_given(harness: Harness) -> None:
    keys = [None, "c", "a", None, "b", "a"]
    submitted = harness.store.inserter.submit([new_job(unique_key=key) for key in keys])
    assert [harness.row(job_id)["unique_key"] for job_id in (new.job_id for new in submitted)] == keys
    assert submitted[5].job_id == submitted[2].job_id
    assert (submitted[2].fresh, submitted[5].fresh) == (True, False)


def test_cancels_of_the_same_ids_do_not_deadlock(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """One has cancelled a job when the other comes with both, in the opposite order."""
    monkeypatch.setattr(control, "MAX_PARAMETERS", 1)  # a statement for each id
    ids = harness.submit(), harness.submit()

    def cancel(ids: tuple[int, ...]) -> int:
        return harness.store.control.cancel_selected(Selection(ids=ids))

    of = "UPDATE jobhandle_job" if harness.database.dialect == "postgresql" else "FOR UPDATE"
    assert in_the_middle(harness, 2, lambda: cancel(ids), lambda: cancel(ids[::-1]), of) == [2, 0]


def note(harness: Harness, ids: list[int]) -> Any:
    """Note that a worker has received these messages; return the worker and its notes."""
    worker, messages = harness.worker(), [harness.message(job_id) for job_id in ids]
    keys = [(message.job_id, message.task_id, message.attempt) for message in messages]
    harness.store.recovery.note_received(keys, worker)
    return worker, keys


def prepare_cancel(harness: Harness, ids: list[int]) -> Callable[[], object]:
    harness.queue(ids[0])  # by the index of the statuses it comes last
    return lambda: harness.store.control.cancel_selected(Selection(statuses=tuple(JobStatus)))


def prepare_reserve(harness: Harness, ids: list[int]) -> Callable[[], object]:
    return lambda: harness.store.outbox.reserve(ids)


def prepare_give_back_all(harness: Harness, ids: list[int]) -> Callable[[], object]:
    worker = harness.worker()
    for job_id in ids:
        harness.run(job_id, worker)
    harness.store.control.cancel(ids[0], None, terminate=False)  # another statement ends it
    return lambda: harness.store.recovery.give_back_all(worker, "the end")


def prepare_clear_received(harness: Harness, ids: list[int]) -> Callable[[], object]:
    worker, keys = note(harness, ids)
    return lambda: harness.store.recovery.clear_received(keys, worker)


def prepare_retire(harness: Harness, ids: list[int]) -> Callable[[], object]:
    worker, _ = note(harness, ids)
    return lambda: harness.store.leases.retire(worker)


def need(harness: Harness, ids: list[int], when: str) -> int:
    """Let jobs wait for one that has finished and is not settled; return its id."""
    needed = harness.submit()
    harness.store.runs.finish(harness.run(needed), "1")
    harness.write(needed, needed=True, unsettled=True)
    for job_id in ids:
        harness.write(job_id, status_id=JobStatus.WAITING, blocked=True, needs_when=when)
    with harness.database.transaction() as db:
        db.insert_needs([{"job_id": job_id, "needs_id": needed, "position": None} for job_id in ids])
    return needed


def prepare_make_ready(harness: Harness, ids: list[int]) -> Callable[[], object]:
    needed = need(harness, ids, "finished")
    return lambda: harness.store.settling.settle([needed])


def prepare_cancel_dependents(harness: Harness, ids: list[int]) -> Callable[[], object]:
    needed = need(harness, ids, "failed")
    return lambda: harness.store.settling.settle([needed])


def prepare_settle(harness: Harness, ids: list[int]) -> Callable[[], object]:
    """On PostgreSQL one statement reads the rows, by whose ends no other changes, and clears their marks."""
    for job_id in ids:
        harness.store.runs.finish(harness.run(job_id), "1")
        harness.write(job_id, needed=True, unsettled=True)
    return lambda: harness.store.settling.settle(ids[::-1])


def prepare_clear_flags(harness: Harness, ids: list[int]) -> Callable[[], object]:
    settle = prepare_settle(harness, ids)
    dependents = [harness.submit() for _ in ids]
    for job_id in dependents:
        harness.write(job_id, status_id=JobStatus.WAITING, blocked=True, needs_when="finished")
    with harness.database.transaction() as db:
        pairs = zip(dependents, ids, strict=True)
        db.insert_needs(
            [{"job_id": job_id, "needs_id": needs_id, "position": None} for job_id, needs_id in pairs]
        )
    return settle


@pytest.mark.parametrize(
    "prepare",
    [
        prepare_cancel,
        prepare_reserve,
        prepare_give_back_all,
        prepare_clear_received,
        prepare_retire,
        prepare_make_ready,
        prepare_cancel_dependents,
        prepare_settle,
        prepare_clear_flags,
    ],
)
def test_rows_are_locked_in_the_order_of_their_ids(
    harness: Harness, prepare: Callable[[Harness, list[int]], Callable[[], object]]
) -> None:
    """While the second row is locked by another transaction, the first one is locked and the third is not."""
    ids = [harness.submit() for _ in range(3)]
    change = prepare(harness, ids)
    for job_id in reversed(ids):
        harness.write(job_id, priority=1)
    unlocked = select(job.c.id).with_for_update(skip_locked=True, key_share=True)
    with ThreadPoolExecutor(1) as pool:
        with harness.database.transaction() as db:
            db.execute(select(job.c.id).where(job.c.id == ids[1]).with_for_update())
            changing = pool.submit(change)
            eventually(lambda: waiting(harness) or changing.done())
            assert not changing.done()
            with harness.database.transaction() as other:
                free = [job_id for job_id in ids if other.execute(unlocked.where(job.c.id == job_id)).first()]
        changing.result(timeout=60)
    assert free == [ids[2]]
