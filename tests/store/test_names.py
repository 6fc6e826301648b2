"""Names are compared byte by byte on every database, whatever the collation."""

import pytest

from jobhandle_celery.store import ClaimRejected, Selection
from tests.store.harness import TASK, Harness, new_job

LIKE_ANN = ["ANN", "Ann", "änn", "ann ", " ann", "a\u0308nn"]


@pytest.mark.parametrize("name", LIKE_ANN, ids=repr)
def test_user_with_similar_name_sees_nothing(harness: Harness, name: str) -> None:
    job_id = harness.submit(username="ann")
    assert harness.store.queries.job(job_id, "ann")
    assert harness.store.queries.job(job_id, name) is None
    assert harness.store.control.cancel(job_id, name, terminate=False) is None
    assert harness.store.pages.find(Selection(username=name), None, 10) == []


def test_namespace_that_is_only_alike_sees_nothing(harness: Harness) -> None:
    other = Harness(harness.url, namespace=harness.settings.namespace.upper())
    job_id = harness.submit()
    assert other.store.queries.job(job_id) is None
    assert sum(other.store.queries.count_by_status().values()) == 0
    other.close()


def test_message_for_a_task_that_is_only_alike_is_refused(harness: Harness) -> None:
    run = harness.key(harness.submit(), harness.worker())
    assert isinstance(harness.store.runs.claim(run, TASK.upper()), ClaimRejected)


def test_task_ids_and_unique_keys_that_are_only_alike_are_two(harness: Harness) -> None:
    own = harness.settings.namespace[:8]
    new = [
        *(new_job(task_id=f"{own}{task_id}") for task_id in "aA"),
        *(new_job(unique_key=key) for key in ("k", "K", "k ")),
    ]
    assert all(job.fresh for job in harness.store.inserter.submit(new))
