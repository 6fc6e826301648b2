"""Groups and sets of results: waits, `then()`, `save()` and `restore()`."""

import pickle
from typing import Any

import pytest
from celery import group
from celery.result import GroupResult, ResultSet, result_from_tuple

from jobhandle_celery.durable.results import JobGroupResult
from tests.durable.results import result_in
from tests.durable.service import make_service
from tests.job_factory import JobFactory


def test_then_of_a_group_is_called_when_all_have_ended(sqlite_factory: JobFactory, app: Any) -> None:
    for ending in ("get", "ready", "join_native"):
        for of_celery in (True, False):
            results = [result_in("Finished", sqlite_factory, app) for _ in range(2)]
            kind: Any = ResultSet(results, app=app)
            if not of_celery:
                kind = JobGroupResult("the id", results, app=app, job_id=1)
            called: list[str] = []
            kind.then(lambda _, called=called: called.append("then"))
            assert called == []
            getattr(kind, ending)()
            assert called == ["then"], ending


def test_sets_and_groups_of_results_are_celerys(sqlite_factory: JobFactory, app: Any) -> None:
    results = [result_in("Finished", sqlite_factory, app) for _ in range(2)]
    for kind in (ResultSet(results), GroupResult("the id", results)):
        assert kind.get(timeout=60) == kind.join(timeout=60) == [5, 5]
        assert kind.successful()
        assert kind.ready()
        assert kind.completed_count() == 2
    both = GroupResult("the id", [*results, result_in("Error", sqlite_factory, app)])
    assert both.failed()
    with pytest.raises(ValueError, match="no good"):
        both.get(timeout=60)
    done: list[Any] = []
    results[0].then(done.append)
    assert results[0].get() == 5
    assert done == [results[0]]


def test_group_is_restored_from_its_rows(app: Any) -> None:
    app.conf.task_always_eager = True
    app.set_current()
    tasks: Any = group(app.tasks["shop.add"].s(number, 1) for number in range(3))
    result = tasks.delay()
    assert result.save() is result
    for other in (
        GroupResult.restore(result.id, app=app),
        result_from_tuple(result.as_tuple(), app),
        pickle.loads(pickle.dumps(result)),
    ):
        assert (other, other.get(timeout=60)) == (result, [1, 2, 3])
    assert pickle.loads(pickle.dumps(result)).job_id == result.job_id
    result.delete()
    assert app.backend.restore_group("unknown") is None
    with pytest.raises(NotImplementedError, match="finds a group by its row"):
        GroupResult("unknown", [app.AsyncResult(result.results[0].id)], app=app).save()


def test_group_is_saved_in_the_result_backend_of_the_app(sqlite_url: str) -> None:
    app: Any = make_service("memory://", sqlite_url, {"result_backend": "cache+memory://"})
    tasks: Any = group(app.tasks["shop.add"].s(number, 1) for number in range(3))
    result = tasks.delay()
    result.save()
    assert GroupResult.restore(result.id, app=app) == result
    result.delete()
    assert app.backend.restore_group(result.id, cache=False) is None
    app.jobs.close()


def test_group_needs_no_result_backend(sqlite_url: str) -> None:
    app: Any = make_service("memory://", sqlite_url, {"task_always_eager": True})
    tasks: Any = group(app.tasks["shop.add"].s(number, 1) for number in range(3))
    result = tasks.delay()
    assert result.get(timeout=60) == result.join(timeout=60) == [1, 2, 3]
    assert result.save() is result
    result.delete()
    assert ResultSet(result.results).get(timeout=60) == [1, 2, 3]
    result.forget()
    app.jobs.close()
