"""Names are compared byte by byte on every database, whatever the collation."""

import pytest

from jobhandle_celery.store import ClaimRejected, Selection
from tests.store.harness import TASK, Bench, new_job

LIKE_ANN = ["ANN", "Ann", "änn", "ann ", " ann", "a\u0308nn"]


@pytest.mark.parametrize("name", LIKE_ANN, ids=repr)
def test_user_with_similar_name_sees_nothing(bench: Bench, name: str) -> None:
    job_id = bench.submit(username="ann")
    assert bench.store.queries.job(job_id, "ann")
    assert bench.store.queries.job(job_id, name) is None
    assert bench.store.control.cancel(job_id, name, terminate=False) is None
    assert bench.store.pages.find(Selection(username=name), None, 10) == []


def test_namespace_that_is_only_alike_sees_nothing(bench: Bench) -> None:
    other = Bench(bench.url, namespace=bench.settings.namespace.upper())
    job_id = bench.submit()
    assert other.store.queries.job(job_id) is None
    assert sum(other.store.queries.count_by_status().values()) == 0
    other.close()


def test_message_for_a_task_that_is_only_alike_is_refused(bench: Bench) -> None:
    run = bench.key(bench.submit(), bench.worker())
    assert isinstance(bench.store.runs.claim(run, TASK.upper()), ClaimRejected)


def test_task_ids_and_unique_keys_that_are_only_alike_are_two(bench: Bench) -> None:
    own = bench.settings.namespace[:8]
    new = [
        *(new_job(task_id=f"{own}{task_id}") for task_id in "aA"),
        *(new_job(unique_key=key) for key in ("k", "K", "k ")),
    ]
    assert all(job.fresh for job in bench.store.inserter.submit(new))
