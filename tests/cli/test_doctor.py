"""The doctor: each finding is provoked, and found."""

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest

from jobhandle_celery import Job, JobStatus, schema
from jobhandle_celery.cli.context import Desk
from jobhandle_celery.cli.doctor import CHECKS
from jobhandle_celery.cli.doctor.findings import PROMISES, Patient
from jobhandle_celery.cli.output import Output
from jobhandle_celery.runtime import runtime_of
from jobhandle_celery.store import Worker
from tests.apps import make_app
from tests.cli.conftest import set_moments
from tests.cli.typed import Shell, typed
from tests.databases import PostgresqlDatabases
from tests.servers import RedisServer
from tests.support import eventually
from tests.test_handle import ADD, HELD, NOBODY_LISTENS, Stage
from tests.test_jobs import age
from tests.workers import WorkerProcess

NewApp = Callable[..., Any]
HOUR = timedelta(hours=1)
REDIS, RABBIT = "redis://127.0.0.1:1/0", "amqp://127.0.0.1:1//"


@pytest.fixture
def new_app(sqlite_url: str) -> Iterator[NewApp]:
    """Make apps whose broker is only named."""
    apps: list[Any] = []

    def make(broker: str = "memory://", database: str = sqlite_url, **settings: Any) -> Any:
        app = make_app(broker, database, settings)
        # Celery gives every app the shared tasks of whatever other apps this process has imported.
        for name in [name for name in app.tasks if not name.startswith(("tests.", "celery."))]:
            del app.tasks[name]
        apps.append(app)
        return app

    yield make
    for app in apps:
        app.jobs.close()


def found(app: Any, name: str, **seen: Any) -> list[tuple[str, str]]:
    """Make one check; `seen` is what the patient has been asked already."""
    (check,) = [check for check in CHECKS if check.name == name]
    patient = Patient(Desk(app, Output()))
    vars(patient).update(seen)
    with closing(patient):
        findings = check.findings(patient)
    for finding in findings:
        assert finding.set or str(finding.level) in ("OK", "UNKNOWN")
    return [(str(finding.level), finding.says) for finding in findings]


def level(app: Any, name: str, **seen: Any) -> str:
    ((word, _),) = found(app, name, **seen)
    return word


def said(app: Any, name: str, **seen: Any) -> str:
    ((word, says),) = found(app, name, **seen)
    return f"{word} {says}"


# The database.


def test_a_database_that_answers_that_is_slow_and_that_is_away(new_app: NewApp) -> None:
    assert level(new_app(), "database") == "OK"
    assert level(new_app(), "database", database=0.5) == "WARN"
    away = new_app(database="postgresql+psycopg://ann:secret@127.0.0.1:1/none")
    assert said(away, "database").startswith("BAD")
    assert "secret" not in said(away, "database")
    for name in ("schema", "clocks", "sweeps", "tasks", "stuck jobs"):
        assert level(away, name) == "UNKNOWN"


def test_a_database_whose_encoding_cannot_hold_every_text(
    new_app: NewApp, postgresql_databases: PostgresqlDatabases
) -> None:
    url = postgresql_databases.create_empty("SQL_ASCII")
    app = new_app(database=url)
    assert "ENCODING 'UTF8'" in said(app, "database")
    assert level(app, "database") == "BAD"
    app.jobs.close()
    postgresql_databases.drop(url)


def test_tables_that_are_missing(new_app: NewApp, empty_sqlite_url: str) -> None:
    assert level(new_app(), "schema") == "OK"
    app = new_app(database=empty_sqlite_url)
    assert said(app, "schema").startswith("BAD The tables")
    assert level(app, "database") == "OK"


def test_a_commit_that_a_crash_may_undo(new_app: NewApp, postgresql_url: str) -> None:
    assert level(new_app(), "durability") == "OK"
    words = found(new_app(database=postgresql_url), "durability")
    assert [word for word, _ in words] == ["WARN"] * len(words)
    assert any("fsync is off" in says for _, says in words)


def test_a_file_asked_from_two_machines(new_app: NewApp) -> None:
    app = new_app()
    for host in ("one", "two"):
        runtime_of(app).store.renew(Worker(f"celery@{host}", host, 1))
        assert level(app, "one machine") == ("OK" if host == "one" else "BAD")


@pytest.mark.parametrize(("off", "word"), [(0, "OK"), (10, "WARN"), (-10, "WARN"), (3600, "BAD")])
def test_clocks_that_differ(new_app: NewApp, monkeypatch: pytest.MonkeyPatch, off: float, word: str) -> None:
    app = new_app()
    store = runtime_of(app).store
    now = store.now
    monkeypatch.setattr(store, "now", lambda: now() + timedelta(seconds=off))
    assert level(app, "clocks") == word


def test_sweeps_that_nobody_makes(stage: Stage) -> None:
    assert "nobody has ever swept" in said(stage.app, "sweeps")
    stage.jobs.sweep()
    assert said(stage.app, "sweeps").startswith("OK sweeps since")
    set_moments(stage, schema.sweep.c.last_pass_at, stage.store.now() - HOUR)
    assert "BAD nobody has swept for 1h" in said(stage.app, "sweeps")


@pytest.mark.parametrize(
    ("lease", "answers_in", "word"), [(60, 0.001, "OK"), (5, 0.001, "WARN"), (60, 6.0, "BAD")]
)
def test_a_lease_that_is_short(new_app: NewApp, lease: float, answers_in: float, word: str) -> None:
    assert level(new_app(jobhandle_lease=lease), "lease", database=answers_in) == word


# The broker.


def test_a_broker_that_is_away_or_none(new_app: NewApp) -> None:
    assert level(new_app(), "broker") == "OK"
    for broker in (NOBODY_LISTENS, RABBIT, "nonsense://"):
        assert level(new_app(broker), "broker") == "BAD"
    for name in ("worker step", "tasks", "queues", "eviction"):
        assert level(new_app(NOBODY_LISTENS), name) == "UNKNOWN"


@pytest.mark.parametrize(
    ("options", "settings", "word"),
    [
        ({}, {}, "OK"),
        ({"visibility_timeout": 2}, {}, "WARN"),
        ({"visibility_timeout": "soon"}, {}, "BAD"),
        ({}, {"task_acks_late": True}, "WARN"),
        ({}, {"task_acks_late": True, "task_time_limit": 7200}, "WARN"),
        ({}, {"task_acks_late": True, "task_time_limit": 600}, "OK"),
    ],
)
def test_a_message_that_comes_back_too_soon(
    new_app: NewApp, options: dict[str, Any], settings: dict[str, Any], word: str
) -> None:
    app = new_app(REDIS, broker_transport_options=options, **settings)
    assert level(app, "visibility_timeout") == word
    assert level(new_app(RABBIT), "visibility_timeout") == "OK"


def test_late_acknowledgement(new_app: NewApp) -> None:
    assert "early" in said(new_app(REDIS), "acks_late")
    assert said(new_app(REDIS, task_acks_late=True), "acks_late").startswith("OK")
    assert "consumer_timeout" in said(new_app(RABBIT, task_acks_late=True), "acks_late")
    assert level(new_app(RABBIT, task_acks_late=True, task_time_limit=60), "acks_late") == "OK"


def test_an_option_that_the_transport_does_not_know(new_app: NewApp) -> None:
    assert level(new_app(REDIS), "transport options") == "OK"
    right = new_app(REDIS, broker_transport_options={"visibility_timeout": 60, "max_retries": 1})
    assert level(right, "transport options") == "OK"
    wrong = new_app(REDIS, broker_transport_options={"visibility_timout": 60})
    assert said(wrong, "transport options").startswith("WARN broker_transport_options has visibility_timout")


def test_publisher_confirms(new_app: NewApp) -> None:
    assert level(new_app(REDIS), "publisher confirms") == "OK"
    assert level(new_app(RABBIT), "publisher confirms") == "WARN"
    confirmed = new_app(RABBIT, broker_transport_options={"confirm_publish": True})
    assert level(confirmed, "publisher confirms") == "OK"


def test_a_redis_that_throws_queues_away(new_app: NewApp, private_redis: RedisServer) -> None:
    import redis

    app = new_app(private_redis.url)
    assert level(app, "eviction") == "OK"
    with redis.Redis.from_url(private_redis.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    assert level(app, "eviction") == "WARN"
    assert level(new_app(), "eviction") == "OK"


# The configuration.


@pytest.mark.parametrize(("multiplier", "word"), [(1, "OK"), (4, "OK"), (0, "WARN")])
def test_prefetch(new_app: NewApp, multiplier: int, word: str) -> None:
    assert level(new_app(worker_prefetch_multiplier=multiplier), "prefetch") == word


def test_a_result_backend_that_is_none_answers_or_is_away(new_app: NewApp) -> None:
    assert "no result_backend" in said(new_app(), "result backend")
    assert "answers" in said(new_app(result_backend="cache+memory://"), "result backend")
    assert level(new_app(result_backend=NOBODY_LISTENS), "result backend") == "WARN"


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({}, "OK"),
        ({"accept_content": ["yaml"]}, "BAD"),
        ({"accept_content": ["json", "pickle"]}, "WARN"),
        ({"task_serializer": "auth"}, "BAD"),
        ({"accept_content": ["no-such"]}, "UNKNOWN"),
    ],
)
def test_serializers(new_app: NewApp, settings: dict[str, Any], word: str) -> None:
    assert level(new_app(**settings), "serializers") == word


def test_events_for_flower(new_app: NewApp) -> None:
    assert [word for word, _ in found(new_app(), "events")] == ["WARN", "WARN"]
    on = new_app(worker_send_task_events=True, task_send_sent_event=True)
    assert [word for word, _ in found(on, "events")] == ["OK", "OK"]


def test_jobs_that_run_in_their_submitter_or_in_children_that_know_nothing(new_app: NewApp) -> None:
    assert [level(new_app(), name) for name in ("eager", "pool")] == ["OK", "OK"]
    assert level(new_app(task_always_eager=True), "eager") == "BAD"
    assert level(new_app(worker_pool_start_method="spawn"), "pool") == "BAD"


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ("prefork", "OK the prefork pool keeps time limits"),
        ("threads", "WARN the threads pool keeps no hard and no soft"),
        ("solo", "WARN the solo pool keeps no hard and no soft"),
        ("gevent", "WARN the gevent pool keeps no soft"),
        ("some.module:Pool", "OK"),
    ],
)
def test_pool_that_keeps_no_time_limits_is_a_warning(new_app: NewApp, pool: str, words: str) -> None:
    """A time limit that the pool does not keep is logged before it is missed (fault 30)."""
    assert said(new_app(worker_pool=pool), "time limits").startswith(words)


# The workers.


def test_leases_that_nobody_has_and_that_have_ended(stage: Stage) -> None:
    assert level(stage.app, "workers") == "WARN"
    stage.jobs.handle().submit(ADD)
    assert "1 jobs wait" in said(stage.app, "workers")
    assert level(stage.app, "workers") == "BAD"
    stage.store.renew(Worker("celery@here", "boot", 1))
    assert said(stage.app, "workers") == "OK 1 workers have a lease: celery@here"
    assert level(stage.app, "lost workers") == "OK"
    with stage.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE jobhandle_worker SET lease_until = started")
    assert "the lease of celery@here ended" in said(stage.app, "lost workers")
    assert level(stage.app, "workers") == "BAD"


def test_when_no_worker_answers_the_doctor_says_so(stage: Stage) -> None:
    assert level(stage.app, "worker step") == "UNKNOWN"
    assert [level(stage.app, name) for name in ("tasks", "queues")] == ["OK", "OK"]
    stage.jobs.handle().submit(ADD)
    assert [level(stage.app, name) for name in ("tasks", "queues")] == ["UNKNOWN", "UNKNOWN"]


def test_workers_without_the_step_unknown_tasks_and_queues_that_nobody_consumes(
    new_app: NewApp, sqlite_url: str, redis_url: str, start_worker: Callable[..., WorkerProcess]
) -> None:
    worker = start_worker(database_url=sqlite_url, broker_url=redis_url, pool="solo")
    app = new_app(redis_url, jobhandle_lease=600)
    assert said(app, "worker step") == f"OK every worker that answers has its lease: {worker.nodename}"
    assert said(app, "internal errors") == "OK no worker tells of internal errors"
    for job in (Job(task="tests.elsewhere"), Job(task="tests.add", args=[1, 2], queue="empty")):
        app.jobs.handle().submit(job)
    assert "1 jobs of the task tests.elsewhere" in said(app, "tasks")
    assert "1 jobs for the queue empty" in said(app, "queues")
    assert level(app, "tasks") == level(app, "queues") == "BAD"
    app.jobs.cancel_many(status="Queued")
    app.jobs.cancel_many(status="Submitted")
    runtime_of(app).store.renew(Worker("celery@deaf", "deaf", 1))
    strange = start_worker(broker_url=redis_url, pool="solo", queues=["strange"])
    eventually(lambda: len(found(app, "worker step")) == 2, 60)
    words = dict(found(app, "worker step"))
    assert words["BAD"].startswith(f"{strange.nodename} answers on this broker and has no lease")
    assert words["WARN"].startswith("celery@deaf has a lease and does not answer")


# The jobs.


def test_jobs_that_are_stuck_are_told_with_the_reason(stage: Stage) -> None:
    assert level(stage.app, "stuck jobs") == "OK"
    overdue, untaken = stage.job_in(JobStatus.SUBMITTED), stage.job_in(JobStatus.QUEUED)
    deserted, deaf, forgotten = (stage.job_in(JobStatus.RUNNING) for _ in range(3))
    deaf.cancel_job()
    set_moments(stage, schema.job.c.due_at, stage.store.now() - HOUR, schema.job.c.id == overdue.job_id)
    age(stage, deaf.job_id, "cancel_requested", HOUR)
    age(stage, forgotten.job_id, "started", HOUR * 48)
    with stage.engine.begin() as connection:
        for job_id, change in (
            (untaken.job_id, "publish_count = 4"),
            (deserted.job_id, "worker_uid = 'gone'"),
            (deaf.job_id, "worker_uid = 'alive'"),
        ):
            connection.exec_driver_sql(f"UPDATE jobhandle_job SET {change} WHERE id = {job_id}")
    stage.store.renew(Worker("celery@here", "alive", 1))
    told = dict(found_by_job(stage))
    assert told[overdue.job_id].startswith("BAD 1 jobs: the sweep should have looked")
    assert told[untaken.job_id].startswith("WARN 1 jobs: it was sent several times")
    assert told[deserted.job_id].startswith("BAD 1 jobs: it is Running, and its worker has no lease")
    assert told[deaf.job_id].startswith("WARN 1 jobs: it was asked to stop")
    assert told[forgotten.job_id].startswith("WARN 1 jobs: somebody took it by hand")


def found_by_job(stage: Stage) -> Iterator[tuple[int, str]]:
    for word, says in found(stage.app, "stuck jobs"):
        _, _, rest = says.partition(". job ")
        yield int(rest.split()[0]), f"{word} {says}"


def test_held_jobs_are_counted(stage: Stage) -> None:
    assert said(stage.app, "held jobs") == "OK no job is held"
    stage.jobs.submit_many([HELD, HELD])
    assert said(stage.app, "held jobs") == "OK 2 jobs are held"


# The command.


def test_a_check_that_fails_says_so_and_hides_no_other(
    new_app: NewApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = new_app()
    monkeypatch.setattr(runtime_of(app).store, "count_held", lambda: 1 // 0)
    assert said(app, "held jobs").startswith("UNKNOWN this check failed: ZeroDivisionError")
    checks = {finding["check"] for finding in typed(app, "doctor", "--json").documents}
    assert checks == {check.name for check in CHECKS}


def test_every_check_names_promises_that_there_are() -> None:
    assert {promise for check in CHECKS for promise in check.promises} == set(PROMISES)
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def test_the_exit_code_says_whether_something_is_bad(new_app: NewApp) -> None:
    app = new_app(jobhandle_lease=60)
    bad = typed(app, "doctor")
    assert (bad.code, "BAD      sweeps" in bad.out) == (1, True)
    assert "4 not running for ever" in bad.out
    app.jobs.sweep()
    fine = typed(app, "doctor", "--json")
    assert fine.code == 0
    assert {"check", "level", "promises", "says", "set"} == set(fine.documents[0])
    assert {finding["level"] for finding in fine.documents} == {"OK", "WARN", "UNKNOWN"}
    assert typed(app, "doctor", "--strict").code == 1
    assert "OK" not in {finding["level"] for finding in typed(app, "doctor", "--quiet", "--json").documents}


def test_with_everything_away_the_doctor_still_answers() -> None:
    shell = Shell("postgresql+psycopg://ann:secret@127.0.0.1:1/none", NOBODY_LISTENS)
    answer = shell.run("doctor", "--json")
    assert (answer.code, answer.err) == (1, "")
    words = {finding["check"]: finding["level"] for finding in answer.documents}
    assert words["database"] == words["broker"] == "BAD"
    assert words["schema"] == words["worker step"] == "UNKNOWN"
    assert "secret" not in answer.out


@pytest.mark.parametrize("words", [["doctor", "--json"], ["replay-events", "--since", "1h", "--json"]])
def test_on_rabbitmq_too(rabbitmq_url: str, sqlite_url: str, words: list[str]) -> None:
    app: Any = make_app(rabbitmq_url, sqlite_url)
    try:
        app.jobs.handle().submit(ADD)
        documents = {one.get("check"): one for one in typed(app, *words).documents}
        if words[0] == "doctor":
            assert documents["broker"]["says"].startswith("the broker (amqp) answers")
            assert documents["publisher confirms"]["level"] == "WARN"
            assert documents["eviction"]["level"] == "OK"
            assert documents["worker step"]["level"] == "UNKNOWN"
        else:
            assert documents[None] == {"jobs": 1, "events": 1}
    finally:
        app.jobs.close()
