"""stats and top: what they count, and what they do not look at."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy

from jobhandle_celery import Job, JobStatus, schema
from jobhandle_celery.status import STARTABLE, UNFINISHED
from jobhandle_celery.store import Selection, Window, Worker, pages
from tests.cli.conftest import set_moments
from tests.cli.typed import typed
from tests.test_handle import ADD, Stage
from tests.test_jobs import age


def test_stats_count_what_is_unfinished_and_what_ended_within_the_window(stage: Stage) -> None:
    handles = {status: stage.job_in(status) for status in JobStatus}
    stage.jobs.handle().submit(Job(task="tests.big_result", args=[1]))
    age(stage, handles[JobStatus.SUBMITTED].job_id, "submitted", timedelta(hours=2))
    document = typed(stage.app, "stats", "--json").document
    assert document["unfinished"] == len(UNFINISHED) + 1
    add, big = (task for task in document["tasks"] if task["task"] in ("tests.add", "tests.big_result"))
    assert {one["status"]: one["count"] for one in add["unfinished"]} == dict.fromkeys(UNFINISHED, 1)
    # The one that was resubmitted had been cancelled before.
    assert add["ended"] == {"Finished": 1, "Error": 1, "Cancelled": 2}
    assert add["ended_per_minute"] == round(4 / 60, 3)
    assert add["submitted"] == 8
    assert [one["count"] for one in big["unfinished"]] == [1]
    assert typed(stage.app, "stats", "--all", "--json").document["tasks"][0]["ended"]["Cancelled"] == 1


def test_what_ended_before_the_window_is_not_counted(stage: Stage) -> None:
    stage.job_in(JobStatus.FINISHED)
    set_moments(stage, schema.job_event.c.at, stage.store.now() - timedelta(hours=2))
    stage.job_in(JobStatus.ERROR)
    (task,) = typed(stage.app, "stats", "--json").document["tasks"]
    assert task["ended"] == {"Error": 1}
    (task,) = typed(stage.app, "stats", "--window", "3h", "--json").document["tasks"]
    assert task["ended"] == {"Finished": 1, "Error": 1}


def test_stats_name_the_workers_and_what_they_run(stage: Stage) -> None:
    assert "no worker is alive" in typed(stage.app, "stats").out
    stage.store.renew(Worker("celery@here", "boot", 7))
    handle = stage.job_in(JobStatus.RUNNING)
    handle.set_progress(1, 4)
    with stage.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE jobhandle_job SET worker_uid = 'boot'")
    (worker,) = typed(stage.app, "stats", "--json").document["workers"]
    assert (worker["name"], worker["alive"]) == ("celery@here", True)
    assert [job["id"] for job in worker["jobs"]] == [handle.job_id]
    said = typed(stage.app, "stats").out
    assert "celery@here" in said
    assert "1/4" in said


def test_top_looks_again_and_again(stage: Stage) -> None:
    answer = typed(stage.app, "top", "--json", "--times", 3, "--interval", "0.2s")
    assert [document["unfinished"] for document in answer.documents] == [0, 0, 0]
    assert "0 unfinished" in typed(stage.app, "top", "--times", 1).out
    assert typed(stage.app, "top", "--window", "0s").code == 2


# What a large table costs.


def many(stage: Stage, count: int) -> None:
    """Make copies of one finished job."""
    stage.job_in(JobStatus.FINISHED)
    with stage.engine.begin() as connection:
        columns = [column["name"] for column in sqlalchemy.inspect(connection).get_columns("jobhandle_job")]
        rest = ", ".join(name for name in columns if name not in ("id", "task_id"))
        connection.exec_driver_sql(
            f"WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) "
            f"INSERT INTO jobhandle_job (id, task_id, {rest}) "
            f"SELECT n.i, 'copy ' || n.i, {rest} FROM jobhandle_job, n"
        )
        connection.exec_driver_sql(
            "INSERT INTO jobhandle_job_event (job_id, at, attempt, status_id, message, actor) "
            "SELECT job.id, at, event.attempt, event.status_id, event.message, actor "
            "FROM jobhandle_job AS job, jobhandle_job_event AS event WHERE job.id > 1"
        )
    # Of long ago but for the last.
    old = datetime(2001, 1, 1, tzinfo=UTC)
    set_moments(stage, schema.job_event.c.at, old, schema.job_event.c.job_id < count - 99)
    set_moments(stage, schema.job.c.submitted, old, schema.job.c.id < count - 99)
    if stage.engine.dialect.name == "postgresql":
        # Not SQLite: it would know averages alone, and think as many jobs Running as Finished.
        with stage.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ANALYZE")


@pytest.fixture(params=["sqlite", "postgresql"])
def planning(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A stage on a database whose plans are read here."""
    stage = Stage(request.getfixturevalue(f"{request.param}_url"))
    yield stage
    stage.close()


@pytest.fixture
def plans(planning: Stage) -> list[str]:
    """The plans of all statements that the store makes from now on."""
    told: list[str] = []
    engine = planning.store.door.engine
    sqlite = engine.dialect.name == "sqlite"

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.lstrip().startswith("SELECT"):
            cursor.execute(f"EXPLAIN {'QUERY PLAN ' if sqlite else ''}{statement}", parameters)
            told.append("\n".join(str(row) for row in cursor.fetchall()))

    sqlalchemy.event.listen(engine, "before_cursor_execute", explain)
    return told


def whole_tables(plans: list[str]) -> list[str]:
    """Return the steps that read a whole table of jobs or events, be it by an index."""
    steps = [step for plan in plans for step in plan.splitlines()]
    tables = ("jobhandle_job ", "jobhandle_job'", "jobhandle_job_event")
    return [
        step
        for step in steps
        if ("Seq Scan" in step or "SCAN jobhandle_job" in step) and any(table in step for table in tables)
    ]


def test_lists_and_stats_read_no_whole_table(planning: Stage, plans: list[str]) -> None:
    many(planning, 20_000)
    plans.clear()
    for words in (
        ["list"],
        ["list", "--before", "9000", "--limit", "300"],
        ["list", "--status", "Error", "--status", "Running"],
        ["list", "--since", "1h", "--status", "Waiting"],
        ["stats"],
        ["stats", "--window", "1s"],
    ):
        assert typed(planning.app, *words).code == 0
        assert plans
        assert whole_tables(plans) == [], words
        plans.clear()


def test_the_doctor_and_a_replay_read_no_whole_table(planning: Stage, plans: list[str]) -> None:
    many(planning, 20_000)
    plans.clear()
    assert len(planning.store.touched_within(timedelta(hours=1), 1000)) == 100
    planning.store.stuck(timedelta(minutes=1), 3)
    planning.store.count(sorted(STARTABLE), "queue")
    planning.store.count_held()
    planning.store.ids(Selection(statuses=tuple(UNFINISHED), task="tests.add"), Window())
    planning.store.workers()
    planning.store.running(30)
    assert whole_tables(plans) == []


def test_a_list_by_task_looks_at_a_bounded_number_of_ids_and_says_where_to_go_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "STRIDE", 10)
    monkeypatch.setattr(pages, "LOOKED_THROUGH", 30)
    stage.jobs.submit_many([Job(task="tests.big_result", args=[1]), *[ADD] * 100])
    first = typed(stage.app, "list", "--task", "tests.big_result", "--ids")
    assert (first.out, first.err) == ("", "more: --before 72\n")
    everything = typed(stage.app, "list", "--task", "tests.big_result", "--ids", "--all")
    assert (everything.out, everything.err) == ("1\n", "")
    page = stage.store.page(Selection(task="tests.add"), Window(), 25)
    assert [job.id for job in page.jobs] == list(range(101, 76, -1))
    assert page.before == 77


def test_ids_that_are_missing_are_leapt_over(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "STRIDE", 10)
    stage.jobs.submit_many([ADD] * 2)
    with stage.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE jobhandle_job_event SET job_id = 1")
        connection.exec_driver_sql("UPDATE jobhandle_job SET id = 1000000000 WHERE id = 2")
    assert typed(stage.app, "list", "--task", "tests.add", "--ids").out == "1000000000\n1\n"
    assert typed(stage.app, "list", "--since", "1h", "--ids").out == "1000000000\n1\n"
