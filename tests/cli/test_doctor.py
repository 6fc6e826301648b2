"""doctor: each finding about servers, workers and jobs is provoked; and the command itself."""

from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest

from jobhandle_celery import Job, JobStatus, schema
from jobhandle_celery.cli.context import CommandContext
from jobhandle_celery.cli.doctor import CHECKS
from jobhandle_celery.cli.doctor.findings import PROMISES, Deployment
from jobhandle_celery.cli.output import Output
from jobhandle_celery.runtime import runtime_of
from jobhandle_celery.store import Worker
from tests.apps import make_app
from tests.cli.findings import NewApp, findings, level, line, stuck_jobs
from tests.cli.runner import Shell, run_command
from tests.databases import PostgresqlDatabases
from tests.job_factory import ADD, HELD, NOBODY_LISTENS, JobFactory, age, set_times, update_column
from tests.servers import RedisServer
from tests.support import eventually
from tests.workers import WorkerProcess

HOUR = timedelta(hours=1)


def ask_workers(app: Any) -> Any:
    """Return the workers' answers, for several checks."""
    with closing(Deployment(CommandContext(app, Output()))) as deployment:
        return deployment.answers


# The database.


def test_database_answers_is_slow_or_is_unavailable(new_app: NewApp) -> None:
    assert level(new_app(), "database") == "OK"
    assert level(new_app(), "database", database=0.5) == "WARN"
    away = new_app(database="postgresql+psycopg://ann:secret@127.0.0.1:1/none")
    assert line(away, "database").startswith("BAD")
    assert "secret" not in line(away, "database")
    for name in ("schema", "clocks", "sweeps", "tasks", "stuck jobs"):
        assert level(away, name) == "UNKNOWN"


def test_database_with_an_encoding_for_ascii_only_is_bad(
    new_app: NewApp, postgresql_databases: PostgresqlDatabases
) -> None:
    url = postgresql_databases.create_empty("SQL_ASCII")
    app = new_app(database=url)
    assert "ENCODING 'UTF8'" in line(app, "database")
    assert level(app, "database") == "BAD"
    app.jobs.close()
    postgresql_databases.drop(url)


def test_missing_tables_are_bad(new_app: NewApp, empty_sqlite_url: str) -> None:
    assert level(new_app(), "schema") == "OK"
    app = new_app(database=empty_sqlite_url)
    assert line(app, "schema").startswith("BAD The tables")
    assert level(app, "database") == "OK"


def test_database_without_fsync_is_a_warning(new_app: NewApp, postgresql_url: str) -> None:
    assert level(new_app(), "durability") == "OK"
    found = findings(new_app(database=postgresql_url), "durability")
    assert {level for level, _ in found} == {"WARN"}
    assert any("fsync is off" in message for _, message in found)


def test_sqlite_on_two_machines_is_bad(new_app: NewApp) -> None:
    app = new_app()
    for host in ("one", "two"):
        runtime_of(app).store.leases.renew(Worker(f"celery@{host}", host, 1))
        assert level(app, "one machine") == ("OK" if host == "one" else "BAD")


@pytest.mark.parametrize(("off", "word"), [(0, "OK"), (10, "WARN"), (-10, "WARN"), (3600, "BAD")])
def test_clock_offset_is_graded(
    new_app: NewApp, monkeypatch: pytest.MonkeyPatch, off: float, word: str
) -> None:
    app = new_app()
    store = runtime_of(app).store
    now = store.stats.now
    monkeypatch.setattr(store.stats, "now", lambda: now() + timedelta(seconds=off))
    assert level(app, "clocks") == word


def test_missing_or_late_sweeps_are_bad(factory: JobFactory) -> None:
    assert "BAD no sweep has ever run" in line(factory.app, "sweeps")
    factory.jobs.sweep()
    assert line(factory.app, "sweeps").startswith("OK sweeps are uninterrupted for")
    set_times(factory, schema.sweep.c.last_pass_at, factory.store.stats.now() - HOUR)
    assert "BAD the last sweep was 1h ago" in line(factory.app, "sweeps")


# The broker.


def test_broker_answers_is_unavailable_or_invalid(new_app: NewApp) -> None:
    assert level(new_app(), "broker") == "OK"
    for broker in (NOBODY_LISTENS, "amqp://127.0.0.1:1//", "nonsense://"):
        assert level(new_app(broker), "broker") == "BAD"
    for name in ("worker step", "tasks", "queues", "eviction"):
        assert level(new_app(NOBODY_LISTENS), name) == "UNKNOWN"


def test_redis_that_evicts_queues_is_a_warning(new_app: NewApp, private_redis: RedisServer) -> None:
    import redis

    app = new_app(private_redis.url)
    assert level(app, "eviction") == "OK"
    with redis.Redis.from_url(private_redis.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    assert level(app, "eviction") == "WARN"
    assert level(new_app(), "eviction") == "OK"


# The workers.


def test_missing_and_expired_leases_are_reported(factory: JobFactory) -> None:
    assert level(factory.app, "workers") == "WARN"
    factory.jobs.handle().submit(ADD)
    assert "1 jobs are to be run" in line(factory.app, "workers")
    assert level(factory.app, "workers") == "BAD"
    factory.store.leases.renew(Worker("celery@here", "boot", 1))
    assert line(factory.app, "workers") == "OK 1 workers have a valid lease: celery@here"
    assert level(factory.app, "lost workers") == "OK"
    update_column(factory, schema.worker.c.lease_until, schema.worker.c.started)
    assert "the lease of celery@here expired" in line(factory.app, "lost workers")
    assert level(factory.app, "workers") == "BAD"


@pytest.mark.usefixtures("no_worker")
def test_checks_of_workers_are_unknown_without_answers(factory: JobFactory) -> None:
    assert level(factory.app, "worker step") == "UNKNOWN"
    assert [level(factory.app, name) for name in ("tasks", "queues")] == ["OK", "OK"]
    factory.jobs.handle().submit(ADD)
    assert [level(factory.app, name) for name in ("tasks", "queues")] == ["UNKNOWN", "UNKNOWN"]


def test_doctor_reports_foreign_workers_and_unconsumed_queues(
    new_app: NewApp, sqlite_url: str, redis_url: str, start_worker: Callable[..., WorkerProcess]
) -> None:
    worker = start_worker(database_url=sqlite_url, broker_url=redis_url, pool="solo")
    app = new_app(redis_url, jobhandle_lease=600)
    answers = ask_workers(app)
    leased = f"OK every worker that answers has a valid lease: {worker.nodename}"
    assert line(app, "worker step", answers=answers) == leased
    assert line(app, "internal errors", answers=answers) == "OK no worker has had an internal error"
    for job in (Job(task="tests.elsewhere"), Job(task="tests.add", args=[1, 2], queue="empty")):
        app.jobs.submit(job)
    tasks, queues = line(app, "tasks", answers=answers), line(app, "queues", answers=answers)
    assert tasks.startswith("BAD 1 jobs are to run the task tests.elsewhere")
    assert queues.startswith("BAD 1 jobs are routed to the queue empty")
    app.jobs.cancel_many(status=["Queued", "Submitted"])
    runtime_of(app).store.leases.renew(Worker("celery@deaf", "deaf", 1))
    foreign = start_worker(broker_url=redis_url, pool="solo", queues=["foreign"])
    answers = eventually(lambda: {} if len((found := ask_workers(app))["tasks"]) < 2 else found)
    messages = dict(findings(app, "worker step", answers=answers))
    assert messages["BAD"].startswith(f"{foreign.nodename} consumes from this broker and has no lease")
    assert messages["WARN"].startswith("celery@deaf has a valid lease and does not answer")


# The jobs.


def test_stuck_jobs_are_reported_with_the_reason(factory: JobFactory) -> None:
    assert level(factory.app, "stuck jobs") == "OK"
    overdue, untaken = factory.job_in(JobStatus.SUBMITTED), factory.job_in(JobStatus.QUEUED)
    deserted, deaf, forgotten = (factory.job_in(JobStatus.RUNNING) for _ in range(3))
    deaf.cancel_job()
    set_times(
        factory, schema.job.c.due_at, factory.store.stats.now() - HOUR, schema.job.c.id == overdue.job_id
    )
    age(factory, deaf.job_id, "cancel_requested", HOUR)
    age(factory, forgotten.job_id, "started", HOUR * 48)
    update_column(factory, schema.job.c.publish_count, 4, schema.job.c.id == untaken.job_id)
    update_column(factory, schema.job.c.worker_uid, "gone", schema.job.c.id == deserted.job_id)
    update_column(factory, schema.job.c.worker_uid, "alive", schema.job.c.id == deaf.job_id)
    factory.store.leases.renew(Worker("celery@here", "alive", 1))
    reported = dict(stuck_jobs(factory))
    assert reported[overdue.job_id].startswith("BAD 1 jobs: not handled when due")
    assert reported[untaken.job_id].startswith("WARN 1 jobs: published several times")
    assert reported[deserted.job_id].startswith("BAD 1 jobs: Running without a worker lease")
    assert reported[deaf.job_id].startswith("WARN 1 jobs: still running long after a stop")
    assert reported[forgotten.job_id].startswith("WARN 1 jobs: set to Running by set_status()")


def test_held_jobs_are_counted(factory: JobFactory) -> None:
    assert line(factory.app, "held jobs") == "OK no job is held"
    factory.jobs.submit_many([HELD, HELD])
    assert line(factory.app, "held jobs") == "OK 2 jobs are held"


# The command.


@pytest.mark.usefixtures("no_worker")
def test_failing_check_hides_no_other(new_app: NewApp, monkeypatch: pytest.MonkeyPatch) -> None:
    app = new_app()
    monkeypatch.setattr(runtime_of(app).store.diagnostics, "count_held", lambda: 1 // 0)
    assert line(app, "held jobs").startswith("UNKNOWN the check failed: ZeroDivisionError")
    checks = {finding["check"] for finding in run_command(app, "doctor", "--json").documents}
    assert checks == {check.name for check in CHECKS}


def test_checks_cover_every_promise() -> None:
    assert {promise for check in CHECKS for promise in check.promises} == set(PROMISES)
    assert len({check.name for check in CHECKS}) == len(CHECKS)


@pytest.mark.usefixtures("no_worker")
def test_exit_code_depends_on_the_levels(new_app: NewApp) -> None:
    app = new_app(jobhandle_lease=60)
    bad = run_command(app, "doctor")
    assert (bad.code, "BAD      sweeps" in bad.out) == (1, True)
    assert "4 not running for ever" in bad.out
    app.jobs.sweep()
    fine = run_command(app, "doctor", "--json")
    assert fine.code == 0
    assert {"check", "level", "promises", "says", "set"} == set(fine.documents[0])
    assert {finding["level"] for finding in fine.documents} == {"OK", "WARN", "UNKNOWN"}
    assert run_command(app, "doctor", "--strict").code == 1
    assert "OK" not in {
        finding["level"] for finding in run_command(app, "doctor", "--quiet", "--json").documents
    }


def test_doctor_works_without_any_server() -> None:
    shell = Shell("postgresql+psycopg://ann:secret@127.0.0.1:1/none", NOBODY_LISTENS)
    answer = shell.run("doctor", "--json")
    assert (answer.code, answer.err) == (1, "")
    words = {finding["check"]: finding["level"] for finding in answer.documents}
    assert words["database"] == words["broker"] == "BAD"
    assert words["schema"] == words["worker step"] == "UNKNOWN"
    assert "secret" not in answer.out


@pytest.mark.usefixtures("no_worker")
def test_doctor_and_replay_work_on_rabbitmq(rabbitmq_url: str, sqlite_url: str) -> None:
    app: Any = make_app(rabbitmq_url, sqlite_url)
    try:
        app.jobs.handle().submit(ADD)
        found = {finding["check"]: finding for finding in run_command(app, "doctor", "--json").documents}
        assert found["broker"]["says"].startswith("the broker (amqp) answers")
        assert found["publisher confirms"]["level"] == "WARN"
        assert found["eviction"]["level"] == "OK"
        assert found["worker step"]["level"] == "UNKNOWN"
        replayed = run_command(app, "replay-events", "--since", "1h", "--json").document
        assert replayed == {"jobs": 1, "events": 1}
    finally:
        app.jobs.close()
