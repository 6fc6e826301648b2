"""The results of what a job needs are put before its arguments, after the claim and before its body."""

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import signals

from jobhandle_celery import Failure, Job, JobHandle, JobStatus, current_job
from jobhandle_celery.broker.headers import HEADER
from jobhandle_celery.runtime import runtime_of
from jobhandle_celery.serialization import LIMIT
from jobhandle_celery.store import Run
from tests.apps import make_app
from tests.in_process import become_worker, message_of, run
from tests.needing import store_tree, submit, taking, task
from tests.tree_rows import Node, chain, chord, group, leaf

Make = Callable[..., Any]


@pytest.fixture
def make(sqlite_url: str) -> Iterator[Make]:
    made = []

    def make(**settings: Any) -> Any:
        queue = {"task_default_queue": f"queue-{uuid.uuid4().hex}"}
        app: Any = make_app(
            "memory://", sqlite_url, {"result_backend": "cache+memory://", **queue, **settings}
        )
        made.append(app)
        return app

    yield make
    for app in made:
        app.jobs.close()


@pytest.fixture
def app(make: Make) -> Any:
    app = make()
    become_worker(app)
    return app


NEEDS: dict[str, tuple[tuple[Node, ...], list[Any]]] = {
    "a task": ((leaf(1),), [1]),
    "a task without a result": ((leaf(None),), [None]),
    "two tasks": ((leaf(1), leaf("two")), [1, "two"]),
    "a group": ((group(leaf(1), leaf([2])),), [[1, [2]]]),
    "an empty group": ((group(),), [[]]),
    "a chain that ends in a group": ((chain(leaf(0), group(leaf(1), leaf(2))),), [[1, 2]]),
    "a chord": ((chord(group(leaf(1)), leaf({"sum": 1})),), [{"sum": 1}]),
    "a moment": ((leaf({"__type__": "datetime", "__value__": "2030-01-02T00:00:00+00:00"}),),
                 [datetime(2030, 1, 2, tzinfo=UTC)]),
}  # fmt: skip


@pytest.mark.parametrize("case", NEEDS)
def test_results_go_before_arguments(app: Any, case: str) -> None:
    needed, expected = NEEDS[case]
    handle = submit(app, Job(task=taking(app), args=["own"], kwargs={"size": 3}), *needed)
    run(app, message_of(app))
    assert handle.result(timeout=0) == [[*expected, "own"], {"size": 3}]


def test_need_without_position_is_no_argument(app: Any) -> None:
    first, second = store_tree(app, leaf(1)), store_tree(app, leaf(2))
    handle = submit(app, Job(task=taking(app)), (first, None), (second, 0))
    run(app, message_of(app))
    assert handle.result(timeout=0) == [[2], {}]


def test_need_that_ended_in_error_has_no_result(app: Any) -> None:
    handle = submit(app, Job(task=taking(app)), leaf(status=JobStatus.ERROR), when="ended")
    run(app, message_of(app))
    assert handle.result(timeout=0) == [[None], {}]


def test_hooks_signals_and_request_have_the_results(app: Any) -> None:
    """Celery passes them to `before_start`, its signals and the request together with the body's."""
    seen: dict[str, Any] = {}

    def before_start(task: Any, task_id: str, args: Any, kwargs: Any) -> None:
        seen["before_start"] = list(args)

    @task(app, name="tests.seeing", bind=True, before_start=before_start)
    def seeing(task: Any, *args: Any) -> None:
        seen["request"] = list(task.request.args)
        seen["header"] = getattr(task.request, HEADER)

    def prerun(args: Any = (), **_: Any) -> None:
        seen["prerun"] = list(args)

    def postrun(args: Any = (), **_: Any) -> None:
        seen["postrun"] = list(args)

    handle = submit(app, Job(task="tests.seeing", args=["own"]), leaf(1))
    signals.task_prerun.connect(prerun)
    signals.task_postrun.connect(postrun)
    try:
        run(app, message_of(app))
    finally:
        signals.task_prerun.disconnect(prerun)
        signals.task_postrun.disconnect(postrun)
    whole = [1, "own"]
    header = {"id": handle.job_id, "attempt": 1}
    assert seen == {
        **dict.fromkeys(["before_start", "request", "prerun", "postrun"], whole),
        "header": header,
    }


def test_retry_has_the_results_and_they_are_not_put_again(app: Any) -> None:
    @task(app, name="tests.retrying", bind=True)
    def retrying(task: Any, *args: Any) -> list[Any]:
        if task.request.retries < 2:
            raise task.retry(countdown=0)
        return list(args)

    handle = submit(app, Job(task="tests.retrying", args=["own"]), leaf(1))
    for _ in range(3):
        run(app, message_of(app))
    assert handle.result(timeout=0) == [1, "own"]
    assert handle.get_job().args == ["own"]


def test_retry_with_other_arguments_has_those_alone(app: Any) -> None:
    @task(app, name="tests.changing", bind=True)
    def changing(task: Any, *args: Any) -> list[Any]:
        if not task.request.retries:
            raise task.retry(args=["other"], countdown=0)
        return list(args)

    handle = submit(app, Job(task="tests.changing", args=["own"]), leaf(1))
    run(app, message_of(app))
    run(app, message_of(app))
    assert handle.result(timeout=0) == ["other"]


def test_run_that_was_given_back_reads_the_results_again(app: Any) -> None:
    handle = submit(app, Job(task=taking(app), args=["own"]), leaf(1))
    message = message_of(app)
    store, found = runtime_of(app).store, handle.get_job()
    claimed = Run(found.id, found.task_id, 1, str(uuid.uuid4()), runtime_of(app).current_worker())
    assert store.runs.claim(claimed, found.task) == claimed
    store.recovery.give_back(claimed, "its worker is gone", claimed.worker)
    runtime_of(app).submitter.send([handle.job_id])
    run(app, message)  # superseded
    run(app, message_of(app))
    assert handle.result(timeout=0) == [[1, "own"], {}]


def test_resubmitted_job_reads_the_results_again(app: Any) -> None:
    """Also after a retry, whose message had them: the resubmit starts with the row's own arguments."""

    @task(app, name="tests.failing", bind=True)
    def failing(task: Any, *args: Any) -> list[Any]:
        found = current_job()
        assert found is not None
        if found.get_job().attempt < 2:
            raise task.retry(countdown=0)
        if found.get_job().attempt < 3:
            raise ValueError("no good")
        return list(args)

    handle = submit(app, Job(task="tests.failing", args=["own"]), leaf(1))
    run(app, message_of(app))
    run(app, message_of(app))
    assert handle.job_status() is JobStatus.ERROR
    handle.resubmit_job()
    run(app, message_of(app))
    assert handle.result(timeout=0) == [1, "own"]


def failure_of(app: Any, handle: JobHandle) -> Failure:
    """Run the job's message, which must not start the body."""
    failed: list[str] = []

    def note(task_id: str = "", **_: Any) -> None:
        failed.append(task_id)

    signals.task_failure.connect(note)
    try:
        run(app, message_of(app))
    finally:
        signals.task_failure.disconnect(note)
    found = handle.get_job()
    assert found.status is JobStatus.ERROR
    assert failed == [found.task_id]
    assert app.AsyncResult(found.task_id).state == "FAILURE"
    assert found.error is not None
    assert found.message == found.error.message
    return found.error


@pytest.mark.parametrize("fits", [True, False])
def test_arguments_too_large_with_results_end_in_error_with_sizes(app: Any, fits: bool) -> None:
    """The bound is that of a submitted job's arguments: a retry stores them whole."""
    half = LIMIT // 2
    rest = LIMIT - half - len('["", ""]') + (0 if fits else 1)
    handle = submit(app, Job(task=taking(app), args=["x" * rest]), needed := leaf("y" * half))
    if fits:
        run(app, message_of(app))
        # The result is larger than the arguments, and is refused as before.
        assert "the result is" in handle.job_message()
        return
    assert failure_of(app, handle) == Failure(
        "system",
        "ArgumentsError",
        f"its arguments, with the results of what it needs (job {needed.id}: {half + 2:,} bytes), must be "
        f"JSON of at most {LIMIT:,} bytes; this is {LIMIT + 1:,} bytes of JSON, more than {LIMIT:,}",
    )


def test_results_too_large_end_in_error_with_their_size(app: Any) -> None:
    half = LIMIT // 2
    handle = submit(app, Job(task=taking(app)), group(leaf("x" * half), leaf("x" * half), leaf("x" * half)))
    assert failure_of(app, handle).message == (
        f"its arguments must be JSON of at most {LIMIT:,} bytes; the results that it needs are at least "
        f"{3 * (half + 2):,} bytes"
    )


def test_unreadable_result_ends_in_error_that_names_the_job(app: Any) -> None:
    handle = submit(app, Job(task=taking(app)), needed := leaf(columns={"result": "{secret"}))
    error = failure_of(app, handle)
    assert error.message == (
        f"the result of job {needed.id}, an argument of this job, cannot be read: JSONDecodeError"
    )


def test_need_that_is_gone_ends_in_error(app: Any) -> None:
    handle = submit(app, Job(task=taking(app)), 2**40)
    assert f"job {2**40}" in failure_of(app, handle).message


def test_position_of_sensitive_argument_counts_the_results(app: Any) -> None:
    """Before the claim nothing shows which argument it is, so all are hidden; then it is that one alone."""
    asked = Job(task=taking(app), args=["canary", "plain"], sensitive=[1])
    handle = submit(app, asked, leaf("result"))
    message = message_of(app)
    assert message.headers["argsrepr"] == "('***', '***')"
    assert "canary" not in repr(handle.get_job())
    app.conf.result_extended = True
    run(app, message)
    meta = app.backend.get_task_meta(handle.get_job().task_id)
    assert meta["args"] == ["result", "***", "plain"]
    assert handle.result(timeout=0) == [["result", "canary", "plain"], {}]


def test_name_of_sensitive_argument_hides_it_alone(app: Any) -> None:
    asked = Job(task=taking(app), args=["plain"], kwargs={"token": "canary"}, sensitive=["token"])
    submit(app, Job(**{**vars(asked), "args": []}), leaf("result"))
    assert "canary" not in str(message_of(app).headers)


def test_eager_job_has_the_results(make: Make) -> None:
    app = make(task_always_eager=True)

    @task(app, name="tests.seeing", bind=True)
    def seeing(task: Any, *args: Any) -> list[Any]:
        return [list(args), sorted(task.request.headers[HEADER])]

    handle = submit(app, Job(task="tests.seeing", args=["own"]), leaf(1))
    assert handle.result(timeout=0) == [[1, "own"], ["attempt", "id"]]


def test_eager_job_whose_arguments_are_too_large_ends_in_error(make: Make) -> None:
    app = make(task_always_eager=True)
    handle = submit(app, Job(task=taking(app)), group(leaf("x" * LIMIT), leaf(1)))
    assert handle.job_status() is JobStatus.ERROR
    assert "bytes" in handle.job_message()


def test_eager_retry_has_the_results_once(make: Make) -> None:
    app = make(task_always_eager=True)

    @task(app, name="tests.retrying", bind=True)
    def retrying(task: Any, *args: Any) -> list[Any]:
        if not task.request.retries:
            raise task.retry(countdown=0)
        return list(args)

    assert submit(app, Job(task="tests.retrying", args=["own"]), leaf(1)).result(timeout=0) == [1, "own"]


def test_message_of_other_jobs_says_nothing_of_needs(app: Any) -> None:
    app.jobs.submit(Job(task=taking(app)))
    assert message_of(app).headers[HEADER].keys() == {"id", "attempt"}


def test_needs_are_the_records_in_the_order_of_the_arguments(app: Any) -> None:
    ids = [store_tree(app, leaf(number)) for number in range(4)]

    @task(app, name="tests.asking")
    def asking(*args: Any) -> list[int]:
        body = current_job()
        assert body is not None
        return [record.id for record in body.needs()]

    handle = submit(app, Job(task="tests.asking"), (ids[0], None), (ids[1], 1), (ids[2], 0), (ids[3], None))
    run(app, message_of(app))
    assert handle.result(timeout=0) == [ids[2], ids[1], ids[0], ids[3]]
    assert [record.result for record in handle.needs()] == [2, 1, 0, 3]


def test_job_without_needs_has_none(app: Any) -> None:
    handle = app.jobs.handle()
    handle.submit(Job(task=taking(app)))
    assert handle.needs() == []
