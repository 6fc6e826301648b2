"""The results of several runs, written together."""

from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import select

from jobhandle_celery.errors import DatabaseUnavailableError
from jobhandle_celery.schema import job
from jobhandle_celery.status import JobStatus
from jobhandle_celery.store import RunResult
from tests.store.harness import CommonDoor, Harness


def test_runs_end_with_their_own_results_and_events(harness: Harness) -> None:
    me = harness.worker()
    runs = [harness.run(harness.submit(), me) for _ in range(3)]
    other = harness.run(harness.submit(), me)

    ended = harness.store.runs.finish_many({run: RunResult(f'"{run.job_id}"') for run in runs}, me)

    assert ended == {run.job_id for run in runs}
    for run in runs:
        row = harness.row(run.job_id)
        assert (row["status_id"], row["result"]) == (JobStatus.FINISHED, f'"{run.job_id}"')
        assert (row["worker_uid"], row["pid"], row["due_at"]) == (None, None, None)
        assert row["finished"] is not None
        [*_, event] = harness.store.queries.events(run.job_id)
        assert (event.status, event.attempt, event.message, event.actor) == (
            JobStatus.FINISHED,
            1,
            "finished",
            "worker w1",
        )
    assert harness.status(other.job_id) is JobStatus.RUNNING


def test_superseded_run_does_not_keep_the_others_from_ending(harness: Harness) -> None:
    me = harness.worker()
    lost, run = (harness.run(harness.submit(), me) for _ in range(2))
    harness.store.recovery.lose(lost, "gone", me)

    assert harness.store.runs.finish_many({lost: RunResult("1"), run: RunResult("2")}, me) == {run.job_id}

    assert harness.status(lost.job_id) is JobStatus.ERROR


def test_result_may_have_any_text(harness: Harness) -> None:
    run = harness.run(harness.submit())
    result = '"\\u0000 \\ud800 \u00e9 \U0001f600 \\\\ \\" %s %(id)s"'

    assert harness.store.runs.finish_many({run: RunResult(result)}, run.worker)

    assert harness.row(run.job_id)["result"] == result


def test_rows_on_which_others_depend_are_handed_over(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    me, handed = harness.worker(), list[int]()
    needed, run = (harness.run(harness.submit(), me) for _ in range(2))
    harness.write(needed.job_id, needed=True)
    monkeypatch.setattr(harness.database, "on_unsettled", handed.extend)

    harness.store.runs.finish_many({needed: RunResult("1"), run: RunResult("2")}, me)

    assert handed == [needed.job_id]
    assert harness.row(needed.job_id)["unsettled"]


def test_locked_row_is_left_alone(
    common_postgresql_url: str, common_database: CommonDoor, namespace: str
) -> None:
    harness = Harness(
        common_postgresql_url, common_database(common_postgresql_url, "the first"), namespace=namespace
    )
    me = harness.worker()
    locked, run = (harness.run(harness.submit(), me) for _ in range(2))
    caller = sqlalchemy.create_engine(harness.url)
    with caller.connect() as connection:
        connection.execute(select(job.c.id).where(job.c.id == locked.job_id).with_for_update())
        # With a wait for the lock this would be an error, after some seconds.
        ended = harness.store.runs.finish_many({locked: RunResult("1"), run: RunResult("2")}, me)
    caller.dispose()

    assert ended == {run.job_id}
    assert harness.store.runs.finish_many({locked: RunResult("1"), run: RunResult("2")}, me) == {
        locked.job_id
    }


def test_lost_answer_to_the_commit_is_recognised(
    common_postgresql_url: str,
    common_database: CommonDoor,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = Harness(
        common_postgresql_url, common_database(common_postgresql_url, "the first"), namespace=namespace
    )
    run, lost = harness.run(harness.submit()), DatabaseUnavailableError("no answer")
    lost.retry = "immediately"
    answers = [lost]
    plain = harness.database.end_each

    def end_each(*given: Any) -> set[int]:
        ended = plain(*given)
        if answers:
            raise answers.pop()
        return ended

    monkeypatch.setattr(harness.database, "end_each", end_each)
    assert harness.store.runs.finish_many({run: RunResult("1")}, run.worker) == {run.job_id}
    assert answers == []


def test_ignored_result_is_stored_only_for_other_jobs(harness: Harness) -> None:
    me = harness.worker()
    plain, needed = (harness.run(harness.submit(), me) for _ in range(2))
    with_key = harness.run(harness.submit(unique_key="key"), me)
    harness.write(needed.job_id, needed=True)
    runs = plain, needed, with_key

    harness.store.runs.finish_many({run: RunResult("1", ignored=True) for run in runs}, me)

    assert [harness.row(run.job_id)["result"] for run in runs] == [None, "1", "1"]
