"""`Jobs`, and what a handle does beyond OMERO: waiting, results, progress, lists, keys, schedules."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from jobhandle_celery import (
    ApiUsageError,
    Failure,
    InvalidTransitionError,
    Job,
    JobCancelledError,
    JobFailedError,
    JobRecord,
    Jobs,
    JobStatus,
    Progress,
    StopRequested,
    UnknownJobError,
    ValidationError,
    WaitTimeoutError,
)
from jobhandle_celery import handle as handle_module
from jobhandle_celery.store import ClaimRejected, Refusal
from tests.apps import make_app
from tests.support import eventually
from tests.test_handle import ADD, HELD, Stage

HOUR = timedelta(hours=1)


@pytest.fixture
def stage(database_url: str) -> Iterator[Stage]:
    stage = Stage(database_url)
    yield stage
    stage.close()


@pytest.fixture
def jobs(stage: Stage) -> Any:
    return stage.jobs


def age(stage: Stage, job_id: int, column: str, by: timedelta) -> None:
    """Move a time of a job back."""
    job = next(job for job in stage.jobs.find() if job.id == job_id)
    moment = (getattr(job, column) - by).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    zone = "+00" if stage.engine.dialect.name == "postgresql" else ""
    with stage.engine.begin() as connection:
        connection.exec_driver_sql(
            f"UPDATE jobhandle_job SET {column} = '{moment}{zone}' WHERE id = {job_id}"
        )


# Waiting, results, progress.


def test_wait_returns_final_status_and_result_the_value(stage: Stage) -> None:
    handle = stage.jobs.handle()
    handle.submit(ADD)
    run = stage.claim(handle)
    threading.Timer(0.05, stage.store.runs.finish, (run, '{"sum": 5}')).start()
    assert handle.wait(timeout=20) is JobStatus.FINISHED
    assert handle.wait() is JobStatus.FINISHED
    assert handle.result() == {"sum": 5}
    assert handle.result(timeout=timedelta(0)) == {"sum": 5}


def test_wait_and_result_time_out_and_leave_the_job(stage: Stage) -> None:
    handle = stage.job_in(JobStatus.RUNNING)
    before = stage.row(handle.job_id)
    for timeout in (0, 0.01, -1, timedelta(milliseconds=1)):
        with pytest.raises(WaitTimeoutError, match=f"{handle.job_id} is Running"):
            handle.wait(timeout)
        with pytest.raises(TimeoutError):
            handle.result(timeout)
    assert stage.row(handle.job_id) == before


def test_result_keeps_one_deadline_across_a_resubmit(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    job = stage.job_in(JobStatus.FINISHED)
    clock = iter([0, 10])  # the second reading is after the resubmit
    monkeypatch.setattr(handle_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    read = job.get_job

    def resubmitted() -> JobRecord:
        stage.jobs.attach(job.job_id).resubmit_job()
        return read()

    monkeypatch.setattr(job, "get_job", resubmitted)
    with pytest.raises(WaitTimeoutError, match="is Queued after 10 s"):
        job.result(timeout=10)


def test_result_of_failed_job_raises_its_failure(stage: Stage) -> None:
    handle = stage.jobs.handle()
    handle.submit(ADD)
    failure = Failure("task", "ValueError", "no good", "Traceback …")
    stage.store.runs.fail(stage.claim(handle), failure)
    assert handle.wait() is JobStatus.ERROR
    with pytest.raises(JobFailedError, match="ValueError: no good") as caught:
        handle.result()
    assert caught.value.failure == failure == handle.get_job().error
    assert caught.value.job_id == handle.job_id


def test_result_of_job_set_to_error_raises_failure(stage: Stage) -> None:
    handle = stage.job_in(JobStatus.RUNNING)
    handle.set_status_and_message("Error", "the instrument is broken")
    with pytest.raises(JobFailedError, match="the instrument is broken"):
        handle.result()


def test_result_of_cancelled_job_raises_job_cancelled(stage: Stage) -> None:
    handle = stage.job_in(JobStatus.CANCELLED)
    with pytest.raises(JobCancelledError, match=f"job {handle.job_id} was cancelled: from the importer"):
        handle.result()


def test_progress_is_read_as_it_was_set(stage: Stage) -> None:
    handle = stage.job_in(JobStatus.RUNNING)
    assert handle.get_job().progress is None
    for progress in (
        Progress(0),
        Progress(5, 10),
        Progress(2.5, 10.25),
        Progress(-1),
        Progress(2**40, 2**41),
    ):
        handle.set_progress(progress.current, progress.total)
        assert handle.get_job().progress == progress


def test_progress_of_job_not_running_changes_nothing(stage: Stage) -> None:
    for status in set(JobStatus) - {JobStatus.RUNNING}:
        handle = stage.job_in(status)
        before = stage.row(handle.job_id)
        handle.set_progress(1, 2)
        assert stage.row(handle.job_id) == before


def test_stop_request_is_seen_by_all_handles(stage: Stage) -> None:
    handle = stage.jobs.handle()
    handle.submit(ADD)
    body = stage.body_of(stage.claim(handle))
    assert not handle.cancel_requested()
    assert not body.cancel_requested()
    body.raise_if_cancelled()
    assert handle.cancel_job() is JobStatus.RUNNING
    for caller in (handle, body):
        assert caller.cancel_requested()
        with pytest.raises(StopRequested):
            caller.raise_if_cancelled()


def test_superseded_body_should_stop_and_writes_nothing(stage: Stage) -> None:
    handle = stage.jobs.handle()
    handle.submit(ADD)
    run = stage.claim(handle)
    body = stage.body_of(run)
    body.set_progress(1, 2)
    assert body.set_message("half way") == "from the importer"
    assert handle.set_status("Finished") is JobStatus.RUNNING
    before = handle.get_job()
    assert body.cancel_requested()
    with pytest.raises(StopRequested):
        body.raise_if_cancelled()
    body.set_progress(2, 2)
    assert body.set_message("done") == "half way"
    assert not stage.store.runs.finish(run, "5")
    assert handle.get_job() == before


# Running set from outside, release, resubmit.


def test_set_status_running_claims_job_from_workers(stage: Stage) -> None:
    for status in (JobStatus.WAITING, JobStatus.QUEUED, JobStatus.REQUEUED):
        handle = stage.job_in(status)
        run, attempt = stage.run_of(handle), handle.get_job().attempt
        assert handle.set_status("Running") is status
        assert stage.store.runs.claim(run, "tests.add") == ClaimRejected(Refusal.SUPERSEDED)
        job = handle.get_job()
        assert (job.attempt, job.finished) == (attempt + 1, None)
        assert job.started is not None
        stage.jobs.sweep()
        assert handle.set_status_and_message("Finished", "by hand") is JobStatus.RUNNING
        assert handle.job_finished() is not None
        assert handle.result() is None


def test_claim_before_time_or_after_expiry_is_refused(stage: Stage) -> None:
    handle = stage.jobs.handle()
    early = Job(task="tests.add", args=[1, 2], scheduled_for=HOUR)
    late = Job(task="tests.add", args=[1, 2], expires=timedelta(seconds=-1))
    for job, reason in ((early, Refusal.EARLY), (late, Refusal.EXPIRED)):
        handle.submit(job)
        before = stage.row(handle.job_id)
        with pytest.raises(InvalidTransitionError):
            handle.set_status("Running")
        assert stage.row(handle.job_id) == before
        assert stage.store.runs.claim(stage.run_of(handle), "tests.add") == ClaimRejected(reason)
    assert handle.job_status() is JobStatus.CANCELLED
    assert "expired" in handle.job_message()


def test_release_accepts_waiting_jobs_only(stage: Stage) -> None:
    for status in set(JobStatus) - {JobStatus.WAITING}:
        handle = stage.job_in(status)
        before = stage.row(handle.job_id)
        with pytest.raises(InvalidTransitionError, match=f"is {status}, not Waiting"):
            handle.release_job()
        assert stage.row(handle.job_id) == before
    handle = stage.jobs.handle()
    for job in (HELD, Job(task="tests.add", args=[1, 2], scheduled_for=HOUR)):
        handle.submit(job)
        handle.release_job()
        assert handle.job_status() is JobStatus.QUEUED
        assert [event.status for event in stage.jobs.events(handle.job_id)] == ["Waiting", "Submitted"]
        stage.claim(handle)


def test_held_job_stays_waiting_after_sweeps(stage: Stage) -> None:
    handle = stage.job_in(JobStatus.WAITING)
    assert handle.get_job().held
    eventually(stage.jobs.sweep)
    assert handle.job_status() is JobStatus.WAITING
    assert stage.store.runs.claim(stage.run_of(handle), "tests.add") == ClaimRejected(Refusal.EARLY)


def test_resubmit_accepts_final_jobs_only_and_resets_them(stage: Stage) -> None:
    for status in JobStatus:
        handle = stage.job_in(status)
        before = handle.get_job()
        if not status.final:
            with pytest.raises(InvalidTransitionError, match=f"is {status}"):
                handle.resubmit_job()
            assert handle.get_job() == before
            continue
        handle.resubmit_job()
        job = handle.get_job()
        assert job.status is JobStatus.QUEUED
        assert job.task_id != before.task_id
        kept = ("id", "task", "args", "kwargs", "message", "submitted", "attempt", "username", "unique_key")
        for field in kept:
            assert getattr(job, field) == getattr(before, field)
        gone = (job.started, job.finished, job.result, job.error, job.progress, job.cancel_requested)
        assert gone == (None,) * 6
        assert stage.store.runs.finish(stage.claim(handle), "7")
        assert handle.result() == 7


# Records.


def test_submit_of_record_makes_new_job_with_same_wishes(stage: Stage) -> None:
    """A record's status, expiry, system fields, user and group are ignored; a past time means now."""
    wishes = {
        "task": "tests.add",
        "args": [2],
        "kwargs": {"y": 3},
        "message": "from the importer",
        "queue": stage.app.conf.task_default_queue,
        "priority": 3,
        "time_limit": 20,
        "soft_time_limit": 10,
        "max_attempts": 4,
        "meta": {"batch": 7},
        "headers": {"tenant": "acme"},
        "sensitive": ("y", 1),
    }
    ann = stage.jobs.handle(username="ann", groupname="lab")
    ann.submit(Job(**wishes, scheduled_for=datetime.now(UTC) - HOUR, expires=HOUR))
    bob = stage.jobs.handle(username="bob")
    for change in ("Queued", "Running", "Finished"):
        if change != "Queued":
            ann.set_status(change)
        record = ann.get_job()
        assert bob.submit(record) > record.id
        again = bob.get_job()
        assert {name: getattr(again, name) for name in wishes} == wishes
        assert again.expires is None
        assert (again.status, again.attempt, again.started) == (JobStatus.QUEUED, 0, None)
        assert (again.username, again.groupname) == ("bob", None)
        assert again.task_id != record.task_id
        stage.claim(bob)


def test_submit_of_expired_record_makes_a_live_job(stage: Stage) -> None:
    """The old job's moment is past; the default of the task applies, as to any job without `expires`."""
    handle = stage.offline.handle()
    handle.submit(Job(task="tests.add", args=[1, 2], expires=timedelta(seconds=-1)))
    eventually(lambda: stage.jobs.sweep() and handle.job_status() is JobStatus.CANCELLED)
    again = stage.jobs.handle()
    again.submit(handle.get_job())
    assert again.job_status() is JobStatus.QUEUED
    assert again.get_job().expires is None
    stage.claim(again)


def test_submit_of_held_record_makes_a_held_job(stage: Stage) -> None:
    held = stage.job_in(JobStatus.WAITING).get_job()
    ended = stage.job_in(JobStatus.FINISHED).get_job()
    made_held: Any = replace(ended, status="Waiting")  # type: ignore[arg-type]  # as a caller may write it
    for record in (held, made_held):
        handle = stage.jobs.handle()
        handle.submit(record)
        assert handle.get_job().held
    timed = stage.jobs.handle()
    timed.submit(Job(task="tests.add", args=[1, 2], scheduled_for=HOUR))
    record = timed.get_job()
    timed.submit(record)
    assert (timed.job_status(), timed.get_job().scheduled_for) == ("Waiting", record.scheduled_for)


@pytest.mark.parametrize("status", [JobStatus.ERROR, JobStatus.CANCELLED])
def test_submit_of_failed_record_leaves_its_message_out(stage: Stage, status: JobStatus) -> None:
    """The message says why the old job ended; that of any other record is the caller's."""
    handle = stage.jobs.handle()
    record = replace(stage.job_in(status).get_job(), message="worker lost")
    handle.submit(record)
    assert handle.job_message() == ""
    handle.submit(replace(record, status=JobStatus.FINISHED))
    assert handle.job_message() == "worker lost"


def test_job_of_a_subclass_is_submitted_as_its_base(stage: Stage) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Scan(Job):
        instrument: str = ""

    handle = stage.jobs.handle()
    handle.submit(Scan(task="tests.add", args=[1, 2], instrument="left"))
    assert handle.get_job().args == [1, 2]


def test_submit_of_unfinished_keyed_record_returns_its_id(stage: Stage) -> None:
    handle = stage.jobs.handle()
    handle.submit(Job(task="tests.add", args=[1, 2], unique_key="scan:1"))
    record = handle.get_job()
    assert handle.submit(record) == record.id
    handle.cancel_job()
    assert handle.submit(record) != record.id


def test_submit_of_record_that_cannot_be_read_names_the_field(stage: Stage) -> None:
    handle = stage.jobs.handle()
    for column in ("args", "kwargs", "meta"):
        handle.submit(Job(task="tests.add", args=[1, 2], meta={}))
        with stage.engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE jobhandle_job SET {column} = '[' WHERE id = {handle.job_id}")
        with pytest.raises(ValidationError, match=f"^{column}: .*unreadable"):
            handle.submit(handle.get_job())


# Lists, counts, mass cancel.


def test_find_returns_pages_from_the_newest(jobs: Any) -> None:
    ids = jobs.submit_many([Job(task="tests.other") for _ in range(5)])[::-1]

    def found(**query: Any) -> list[int]:
        return [job.id for job in jobs.find(**query)]

    assert found() == ids
    assert found(limit=2) == ids[:2]
    assert found(limit=2, before=ids[1]) == ids[2:4]
    assert found(before=ids[-1]) == []
    assert jobs.find(limit=1)[0] == jobs.attach(ids[0]).get_job()


def test_filters_mean_the_same_to_find_count_and_cancel(stage: Stage) -> None:
    jobs = stage.jobs
    old, *ids = jobs.submit_many([Job(task=f"task.{number % 2}") for number in range(4)], username="ann")
    ids += jobs.submit_many([Job(task="task.0", status=JobStatus.WAITING)], username="bob", groupname="lab")
    age(stage, old, "submitted", 2 * HOUR)
    now = jobs.attach(ids[0]).get_job().submitted
    for filters, expected in (
        ({}, [old, *ids]),
        ({"status": "Waiting"}, ids[3:]),
        ({"status": JobStatus.WAITING}, ids[3:]),
        ({"status": ["Waiting", "Queued"]}, [old, *ids]),
        ({"status": []}, []),
        ({"task": "task.1"}, [ids[0], ids[2]]),
        ({"task": "task.0", "username": "ann"}, [old, ids[1]]),
        ({"task": "nobody.knows"}, []),
        ({"username": "bob"}, ids[3:]),
        ({"groupname": "lab"}, ids[3:]),
        ({"groupname": "lab", "username": "ann"}, []),
        ({"ids": [old, ids[1], 10**9]}, [old, ids[1]]),
        ({"ids": []}, []),
        ({"since": HOUR}, ids),
        ({"since": 3600.0}, ids),
        ({"since": now - HOUR}, ids),
        ({"since": 3 * HOUR, "until": HOUR}, [old]),
        ({"until": 3600, "username": "ann"}, [old]),
        ({"until": now - HOUR}, [old]),
        ({"since": now + HOUR}, []),
        ({"until": 0, "ids": [ids[3]]}, ids[3:]),
        ({"since": now, "until": now}, []),
    ):
        query: dict[str, Any] = filters
        assert [job.id for job in jobs.find(**query)] == expected[::-1], query
        assert [job.id for job in jobs.find(**query, limit=1)] == expected[-1:], query
        counts = jobs.count_by_status(**query)
        assert (len(counts), sum(counts.values())) == (9, len(expected)), query
    assert jobs.count_by_status(username="ann")[JobStatus.QUEUED] == 4
    assert jobs.cancel_many(until=now - HOUR) == jobs.cancel_many(groupname="lab") == 1
    assert [job.id for job in jobs.find(status="Cancelled")] == [ids[3], old]
    assert jobs.cancel_many(since=HOUR, task="task.1") == 2


@pytest.mark.parametrize(("aged", "filter"), [((1,), "since"), ((0, 2), "until")])
def test_period_finds_jobs_whose_ids_do_not_rise_with_time(
    stage: Stage, aged: tuple[int, ...], filter: str
) -> None:
    """A clock that was set, or a long transaction, exchanges the order of neighbours."""
    minute = timedelta(minutes=1)
    ids = stage.jobs.submit_many([ADD] * 3)
    for number in aged:
        age(stage, ids[number], "submitted", 2 * minute)
    query: dict[str, Any] = {filter: minute}
    assert [job.id for job in stage.jobs.find(**query)] == [ids[2], ids[0]]
    start, end = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    assert [job.id for job in stage.jobs.find(since=start, until=end)] == ids[::-1]


def test_positional_filter_is_a_type_error(jobs: Any) -> None:
    for operation in (jobs.find, jobs.count_by_status, jobs.cancel_many):
        with pytest.raises(TypeError, match="positional"):
            operation("Waiting")
        naive = datetime(2030, 1, 1)  # noqa: DTZ001
        bad: Any
        for bad in ("1h", True, -1, -HOUR, float("nan"), naive, []):
            for field in ("since", "until"):
                with pytest.raises(ValidationError, match=f"^{field}: "):
                    operation(**{field: bad})


def test_counts_have_all_nine_statuses(stage: Stage) -> None:
    assert stage.jobs.count_by_status() == dict.fromkeys(JobStatus, 0)
    for number, status in enumerate(JobStatus):
        for _ in range(number % 3):
            stage.job_in(status)
    assert stage.jobs.count_by_status() == {status: n % 3 for n, status in enumerate(JobStatus)}


def test_cancel_many_cancels_what_fits_and_counts_it(stage: Stage) -> None:
    jobs = stage.jobs
    handles = {status: stage.job_in(status) for status in JobStatus}
    with pytest.raises(ApiUsageError, match="needs"):
        jobs.cancel_many()
    assert jobs.cancel_many(ids=[]) == 0
    assert jobs.cancel_many(username="nobody") == jobs.cancel_many(task="nobody.knows") == 0
    assert jobs.cancel_many(status="Queued", ids=[handles[JobStatus.QUEUED].job_id]) == 1
    assert jobs.cancel_many(task="tests.add") == 5
    assert jobs.cancel_many(task="tests.add") == 0
    for status, handle in handles.items():
        stays = status.final or status is JobStatus.RUNNING
        assert handle.job_status() is (status if stays else JobStatus.CANCELLED)
    assert handles[JobStatus.RUNNING].cancel_requested()


# Users.


def test_username_none_is_refused_where_it_would_see_all(jobs: Any) -> None:
    """A web service passes the name of its client, who may not have logged in."""
    job_id = jobs.submit(ADD)
    cancel = partial(jobs.cancel_many, ids=[])
    lists = (jobs.find, jobs.count_by_status, cancel)
    for operation in (jobs.handle, partial(jobs.attach, job_id), partial(jobs.events, job_id), *lists):
        operation()
        with pytest.raises(ValidationError, match=r"^username: None .*left out"):
            operation(username=None)


def test_attach_and_events_with_username_see_its_jobs_alone(jobs: Any) -> None:
    job_id = jobs.submit(ADD, username="ann", groupname="lab")
    with jobs.attach(job_id, username="ann") as handle:
        job = handle.get_job()
        assert (job.username, job.groupname) == ("ann", "lab")
        assert handle.events() == jobs.events(job_id) == jobs.events(job_id, username="ann")
        assert [event.status for event in handle.events()] == [JobStatus.SUBMITTED]
    with pytest.raises(UnknownJobError, match=f"no job {job_id}"):
        jobs.attach(job_id, username="bob")
    assert jobs.events(job_id, username="bob") == []


def test_jobs_as_context_manager_closes_its_connections(database_url: str) -> None:
    app: Any = make_app("memory://", database_url)
    with app.jobs as jobs:
        assert jobs is app.jobs
        job_id = jobs.submit(Job(task="tests.add", args=[1, 2], status=JobStatus.WAITING))
        pool = jobs._runtime.store.database.engine.pool
        assert pool.checkedin() == 1
    assert pool.checkedin() == 0
    assert jobs.attach(job_id).job_status() is JobStatus.WAITING
    jobs.close()


def test_close_of_unused_jobs_makes_no_part(database_url: str) -> None:
    """Not even a missing setting fails then, and the error of the body is not hidden."""
    unset: Any = Celery("unset")
    with pytest.raises(KeyError, match="of the body"), Jobs(unset):
        raise KeyError("of the body")
    app: Any = make_app("memory://", database_url)
    app.jobs.close()
    assert app.jobs._runtime._store is None
    assert not app.jobs._runtime.__dict__.keys() & {"settings", "publisher", "submitter"}


def test_close_closes_all_parts_after_an_error(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app: Any = make_app("memory://", database_url)
    runtime = app.jobs._runtime
    app.jobs.submit(HELD)
    closed: list[str] = []

    def fail(part: str) -> None:
        closed.append(part)
        raise RuntimeError(part)

    with monkeypatch.context() as patch:
        patch.setattr(runtime.submitter, "drain", partial(fail, "drain"))
        patch.setattr(runtime.store.database, "close", partial(fail, "database"))
        patch.setattr(runtime.publisher, "close", partial(fail, "publisher"))
        with pytest.raises(RuntimeError):
            app.jobs.close()
    assert closed == ["drain", "database", "publisher"]
    app.jobs.close()


# Prune.


def test_prune_deletes_old_final_jobs_alone(stage: Stage) -> None:
    jobs = stage.jobs
    old = [stage.job_in(status) for status in JobStatus if status.final]
    young = [stage.job_in(status) for status in JobStatus]
    for handle in old:
        age(stage, handle.job_id, "finished", 2 * HOUR)
    assert jobs.prune(3 * HOUR) == 0
    assert jobs.prune(HOUR) == 3
    for handle in old:
        with pytest.raises(UnknownJobError):
            handle.job_status()
        assert jobs.events(old[0].job_id) == []
    for handle in young:
        assert jobs.events(handle.job_id)
    assert jobs.prune(0) == 3
    assert {job.status for job in jobs.find()} == set(JobStatus) - {"Finished", "Error", "Cancelled"}


def test_submit_many_is_all_or_none_and_in_order(stage: Stage) -> None:
    jobs = stage.jobs
    add = stage.app.tasks["tests.add"]
    ids = jobs.submit_many((add.s(number, 0) for number in range(5)), username="ann", groupname="lab")
    assert ids == sorted(ids)
    assert [(job.args, job.username, job.groupname) for job in jobs.find()] == [
        ([number, 0], "ann", "lab") for number in reversed(range(5))
    ]
    with pytest.raises(ValidationError):
        jobs.submit_many([add.s(1, 2), add.s(1)])
    assert len(jobs.find()) == 5
    assert jobs.count_by_status()[JobStatus.QUEUED] == 5


# Unique keys.


def test_unfinished_job_with_unique_key_exists_once(stage: Stage) -> None:
    keyed = Job(task="tests.add", args=[1, 2], unique_key="scan:1")
    handle, other = stage.jobs.handle(), stage.jobs.handle()
    first = handle.submit(keyed)
    before = stage.row(first)
    assert other.submit(keyed) == first
    assert other.job_id == first
    assert stage.jobs.submit_many([keyed, ADD, keyed])[::2] == [first, first]
    assert stage.row(first) == before
    assert stage.jobs.handle(username="ann").submit(keyed) != first
    assert stage.jobs.handle(username="bob").submit(keyed) != first
    handle.cancel_job()
    second = other.submit(keyed)
    assert second != first
    with pytest.raises(InvalidTransitionError, match="unique_key"):
        handle.resubmit_job()
    assert stage.jobs.attach(first).job_status() is JobStatus.CANCELLED
    other.set_status("Running")
    other.set_status("Finished")
    handle.resubmit_job()
    assert other.submit(keyed) == first


def test_concurrent_submits_of_one_key_insert_one_job(stage: Stage) -> None:
    keyed = Job(task="tests.add", args=[1, 2], unique_key="scan:1")
    ids: list[int] = []
    start = threading.Barrier(8)

    def submit() -> None:
        start.wait()
        ids.append(stage.jobs.handle().submit(keyed))

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8
    assert len(set(ids)) == 1
    assert sum(stage.jobs.count_by_status().values()) == 1


# Schedules.


def test_job_is_published_by_sweep_when_its_time_comes(jobs: Any) -> None:
    handle = jobs.handle()
    handle.submit(Job(task="tests.add", args=[1, 2], scheduled_for=timedelta(seconds=0.3)))
    assert handle.job_status() is JobStatus.WAITING
    eventually(lambda: jobs.sweep() and handle.job_status() is JobStatus.QUEUED)


def test_expired_job_is_cancelled_by_sweep(stage: Stage) -> None:
    expires = timedelta(seconds=0.2)
    handles = [stage.jobs.handle(), stage.jobs.handle(), stage.offline.handle()]
    handles[0].submit(Job(task="tests.add", args=[1, 2], expires=expires))
    handles[1].submit(Job(task="tests.add", args=[1, 2], expires=expires, status=JobStatus.WAITING))
    handles[2].submit(Job(task="tests.add", args=[1, 2], expires=expires))
    running = stage.jobs.handle()
    running.submit(Job(task="tests.add", args=[1, 2], expires=timedelta(seconds=5)))
    stage.claim(running)
    for handle in handles:
        eventually(lambda: stage.jobs.sweep() and handle.job_status() is JobStatus.CANCELLED)  # noqa: B023
        assert "expired" in handle.job_message()
        assert handle.get_job().started is None
    expiry = running.get_job().expires
    assert isinstance(expiry, datetime)
    eventually(lambda: datetime.now(UTC) > expiry and stage.jobs.sweep())
    assert running.job_running()
