"""stats and top: what they count, and which indexes the commands use."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy

from jobhandle_celery import Job, JobStatus, schema
from jobhandle_celery.status import UNFINISHED
from jobhandle_celery.store import Selection, Worker, pages
from tests.cli.runner import run_command
from tests.job_factory import ADD, JobFactory, age, set_times, update_column


def test_stats_count_unfinished_and_recently_ended_jobs(factory: JobFactory) -> None:
    handles = {status: factory.job_in(status) for status in JobStatus}
    factory.jobs.handle().submit(Job(task="tests.big_result", args=[1]))
    age(factory, handles[JobStatus.SUBMITTED].job_id, "submitted", timedelta(hours=2))
    document = run_command(factory.app, "stats", "--json").document
    assert document["unfinished"] == len(UNFINISHED) + 1
    add, big = (task for task in document["tasks"] if task["task"] in ("tests.add", "tests.big_result"))
    assert {count["status"]: count["count"] for count in add["unfinished"]} == dict.fromkeys(UNFINISHED, 1)
    # The Resubmitted job was Cancelled before.
    assert add["ended"] == {"Finished": 1, "Error": 1, "Cancelled": 2}
    assert add["ended_per_minute"] == round(4 / 60, 3)
    assert add["submitted"] == 8
    assert [count["count"] for count in big["unfinished"]] == [1]
    everything = run_command(factory.app, "stats", "--all", "--json").document
    assert everything["tasks"][0]["ended"]["Cancelled"] == 1


def test_stats_window_limits_ended_jobs(factory: JobFactory) -> None:
    factory.job_in(JobStatus.FINISHED)
    set_times(factory, schema.job_event.c.at, factory.store.stats.now() - timedelta(hours=2))
    factory.job_in(JobStatus.ERROR)
    (task,) = run_command(factory.app, "stats", "--json").document["tasks"]
    assert task["ended"] == {"Error": 1}
    (task,) = run_command(factory.app, "stats", "--window", "3h", "--json").document["tasks"]
    assert task["ended"] == {"Finished": 1, "Error": 1}


def test_stats_list_workers_and_their_jobs(factory: JobFactory) -> None:
    assert "no worker is alive" in run_command(factory.app, "stats").out
    factory.store.leases.renew(Worker("celery@here", "boot", 7))
    handle = factory.job_in(JobStatus.RUNNING)
    handle.set_progress(1, 4)
    update_column(factory, schema.job.c.worker_uid, "boot")
    (worker,) = run_command(factory.app, "stats", "--json").document["workers"]
    assert (worker["name"], worker["alive"]) == ("celery@here", True)
    assert [job["id"] for job in worker["jobs"]] == [handle.job_id]
    output = run_command(factory.app, "stats").out
    assert "celery@here" in output
    assert "1/4" in output


def test_top_refreshes(sqlite_factory: JobFactory) -> None:
    result = run_command(sqlite_factory.app, "top", "--json", "--times", 3, "--interval", "0.2s")
    assert [document["unfinished"] for document in result.documents] == [0, 0, 0]
    assert "0 unfinished" in run_command(sqlite_factory.app, "top", "--times", 1).out
    assert run_command(sqlite_factory.app, "top", "--window", "0s").code == 2


# Query plans on a large table.


def copy_finished_job(factory: JobFactory, count: int) -> None:
    """Make `count` copies of a finished job, all but the last 100 of long ago."""
    factory.job_in(JobStatus.FINISHED)
    with factory.engine.begin() as connection:
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
    old = datetime(2001, 1, 1, tzinfo=UTC)
    set_times(factory, schema.job_event.c.at, old, schema.job_event.c.job_id < count - 99)
    set_times(factory, schema.job.c.submitted, old, schema.job.c.id < count - 99)
    if factory.engine.dialect.name == "postgresql":
        # SQLite keeps only averages, and would estimate as many Running jobs as Finished ones.
        with factory.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ANALYZE")


@pytest.fixture(params=["sqlite", "postgresql"])
def large(request: pytest.FixtureRequest) -> Iterator[JobFactory]:
    """A database with 20,000 finished jobs."""
    factory = JobFactory(request.getfixturevalue(f"{request.param}_url"))
    copy_finished_job(factory, 20_000)
    yield factory
    factory.close()


def full_scans(plans: list[str]) -> list[str]:
    """Return the steps that read all jobs or events, by an index or without."""
    steps = [step for plan in plans for step in plan.splitlines()]
    tables = ("jobhandle_job ", "jobhandle_job'", "jobhandle_job_event")
    return [
        step
        for step in steps
        if ("Seq Scan" in step or "SCAN jobhandle_job" in step) and any(table in step for table in tables)
    ]


def test_no_command_scans_a_whole_table(large: JobFactory) -> None:
    plans: list[str] = []
    engine = large.store.database.engine
    sqlite = engine.dialect.name == "sqlite"

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.lstrip().startswith("SELECT"):
            cursor.execute(f"EXPLAIN {'QUERY PLAN ' if sqlite else ''}{statement}", parameters)
            plans.append("\n".join(str(row) for row in cursor.fetchall()))

    sqlalchemy.event.listen(engine, "before_cursor_execute", explain)
    for arguments in (
        ["list"],
        ["list", "--before", "9000", "--limit", "300"],
        ["list", "--status", "Error", "--status", "Running"],
        ["list", "--since", "1h", "--status", "Waiting"],
        ["stats"],
        ["stats", "--window", "1s"],
    ):
        assert run_command(large.app, *arguments).code == 0
        assert plans
        assert full_scans(plans) == [], arguments
        plans.clear()
    # What doctor and replay-events read.
    assert len(large.store.diagnostics.touched_within(timedelta(hours=1), 1000)) == 100
    large.store.diagnostics.stuck(timedelta(minutes=1), 3)
    large.store.stats.count_startable("queue")
    large.store.diagnostics.count_held()
    large.store.pages.ids(Selection(statuses=tuple(UNFINISHED), task="tests.add"))
    large.store.stats.workers()
    large.store.stats.running(30)
    assert plans
    assert full_scans(plans) == []


def test_list_by_task_or_group_searches_a_bounded_number_of_ids(
    factory: JobFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "STRIDE", 10)
    monkeypatch.setattr(pages, "LOOKED_THROUGH", 30)
    factory.jobs.submit(Job(task="tests.big_result", args=[1]), groupname="lab")
    factory.jobs.submit_many([ADD] * 100)
    for filters in (["--task", "tests.big_result"], ["--group", "lab"]):
        first = run_command(factory.app, "list", *filters, "--ids")
        assert (first.out, first.err) == ("", "more jobs: --before 72\n")
        everything = run_command(factory.app, "list", *filters, "--ids", "--all")
        assert (everything.out, everything.err) == ("1\n", "")
    page = factory.store.pages.page(Selection(task="tests.add"), None, 25)
    assert [job.id for job in page.jobs] == list(range(101, 76, -1))
    assert page.before == 77


def test_list_skips_gaps_in_the_ids(factory: JobFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "STRIDE", 10)
    factory.jobs.submit_many([ADD] * 2)
    update_column(factory, schema.job_event.c.job_id, 1)
    update_column(factory, schema.job.c.id, 1_000_000_000, schema.job.c.id == 2)
    for filters in (["--task", "tests.add"], ["--since", "1h"]):
        assert run_command(factory.app, "list", *filters, "--ids").out == "1000000000\n1\n"
