"""Bad input is refused before any write, with the field, the value and the accepted values."""

from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Signature, chain, chord, group

from jobhandle_celery import ApiUsageError, Failure, Job, JobRecord, JobStatus, Progress, ValidationError
from jobhandle_celery.status import SUBMITTABLE

MIB = 1024 * 1024
EAST, WEST = timezone(timedelta(hours=14)), timezone(-timedelta(hours=12))


class Unspeakable:
    """A caller's object whose repr raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def deep() -> Any:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    return nested


def circle() -> Any:
    ring: list[Any] = []
    ring.append(ring)
    return ring


@pytest.fixture
def app(sqlite_url: str, make_jobs_app: Callable[..., Any]) -> Any:
    return make_jobs_app(sqlite_url)


def messages_in(app: Any) -> int:
    with app.connection() as connection:
        channel = connection.default_channel
        channel.queue_declare(queue=app.conf.task_default_queue)
        return int(channel.queue_declare(queue=app.conf.task_default_queue, passive=True).message_count)


@pytest.fixture
def refuses(app: Any) -> Callable[..., str]:
    """Submit a job, alone and after valid ones; assert an error and no new row; return its text."""

    def refuses(bad: Any, field: str, *, error: type[Exception] = ValidationError) -> str:
        jobs = app.jobs
        before = jobs.find(), messages_in(app)
        handle = jobs.handle()
        with pytest.raises(error) as caught:
            handle.submit(bad)
        with pytest.raises(error):
            jobs.submit_many([Job(task="tests.add", args=[1, 2]), bad])
        assert (jobs.find(), messages_in(app)) == before
        assert caught.type is error
        if error is ValidationError:
            assert getattr(caught.value, "field", None) == field
            assert str(caught.value).startswith(f"{field}: ")
            assert "accepted: " in str(caught.value)
        return str(caught.value)

    return refuses


FIELDS: list[tuple[str, Any, str]] = [
    ("task", "", "1 to 255 characters"),
    ("task", None, "text"),
    ("task", 5, "text"),
    ("task", "x" * 256, "255"),
    ("task", "tests\0add", "NUL"),
    ("task", "tests.\udcff", "text"),
    ("args", "text", "a list or tuple"),
    ("args", b"bytes", "a list or tuple"),
    ("args", {"x": 1}, "a list or tuple"),
    ("args", None, "a list or tuple"),
    ("args", [object()], "JSON"),
    ("args", [{1, 2}], "JSON"),
    ("args", [1j], "JSON"),
    ("args", circle(), "JSON"),
    ("args", deep(), "JSON"),
    ("args", [Unspeakable()], "JSON"),
    ("args", ["x" * (MIB - 3)], "1 MiB"),
    ("args", ["a\0b"], "NUL"),
    ("args", [{"a\0b": 1}], "NUL"),
    ("kwargs", [("x", 1)], "a mapping"),
    ("kwargs", None, "a mapping"),
    ("kwargs", {1: 2}, "text as its keys"),
    ("kwargs", {"x": object()}, "JSON"),
    ("kwargs", {"x": "y" * MIB}, "1 MiB"),
    ("kwargs", {"x": "\0"}, "NUL"),
    ("meta", object(), "JSON"),
    ("meta", "x" * MIB, "1 MiB"),
    ("meta", ["\0"], "NUL"),
    ("headers", None, "a mapping"),
    ("headers", {1: 2}, "text as its keys"),
    ("headers", {"tenant": object()}, "JSON"),
    ("headers", {"id": "mine"}, "other names"),
    ("message", None, "text"),
    ("message", b"bytes", "text"),
    ("message", 5, "text"),
    ("queue", "", "1 to 255"),
    ("queue", 5, "text"),
    ("queue", "x" * 256, "255"),
    ("queue", "a\0b", "NUL"),
    ("unique_key", "", "1 to 255"),
    ("unique_key", "x" * 256, "255"),
    ("unique_key", 5, "text"),
    ("unique_key", "a\0b", "NUL"),
    ("unique_key", "\ud800", "text"),
    ("scheduled_for", datetime(2030, 1, 1), "an aware datetime"),  # noqa: DTZ001  # the naive one is the point
    ("scheduled_for", date(2030, 1, 1), "an aware datetime"),
    ("scheduled_for", "2030-01-01T00:00:00Z", "an aware datetime"),
    ("scheduled_for", 1.8e9, "an aware datetime"),  # a Unix timestamp by mistake
    ("scheduled_for", True, "an aware datetime"),
    ("scheduled_for", float("nan"), "an aware datetime"),
    ("scheduled_for", timedelta.max, "timedelta"),
    ("scheduled_for", timedelta.min, "timedelta"),
    ("scheduled_for", datetime(1, 1, 1, tzinfo=EAST), "an aware datetime"),
    ("scheduled_for", datetime.max.replace(tzinfo=WEST), "an aware datetime"),
    ("expires", datetime(2030, 1, 1), "an aware datetime"),  # noqa: DTZ001
    ("expires", -1.8e9, "an aware datetime"),
    ("expires", timedelta.max, "timedelta"),
    ("expires", datetime.max.replace(tzinfo=WEST), "an aware datetime"),
    ("time_limit", 0, "more than 0"),
    ("time_limit", -1, "more than 0"),
    ("time_limit", timedelta(0), "more than 0"),
    ("time_limit", 1e300, "seconds or a timedelta"),
    ("time_limit", float("nan"), "seconds"),
    ("time_limit", float("inf"), "seconds"),
    ("time_limit", 10**400, "seconds"),
    ("time_limit", "60", "seconds"),
    ("time_limit", True, "seconds"),
    ("soft_time_limit", -0.5, "more than 0"),
    ("soft_time_limit", 10**400, "seconds"),
    ("priority", -1, "0 to 255"),
    ("priority", 256, "0 to 255"),
    ("priority", 1.5, "whole number"),
    ("priority", True, "whole number"),
    ("priority", "5", "whole number"),
    ("max_attempts", 0, "from 1"),
    ("max_attempts", -3, "from 1"),
    ("max_attempts", 2**31, "to 1000000"),
    ("max_attempts", True, "whole number"),
    ("when", "failed", "after is empty"),
    ("when", "ended", "after is empty"),
]


def test_invalid_field_is_refused_by_name(refuses: Callable[..., str]) -> None:
    for field, value, accepted in FIELDS:
        message = refuses(Job(**{"task": "unregistered", field: value}), field)
        assert accepted in message, message
        assert len(message) < 700


def test_durations_of_a_job_are_seconds_or_timedelta(app: Any) -> None:
    handle = app.jobs.handle()
    for length, limit in ((3600, 20), (3600.0, 20.5), (timedelta(hours=1), timedelta(seconds=20.5))):
        for job in (
            Job(task="tests.add", args=[1, 2], scheduled_for=length, expires=length, time_limit=limit),
            app.tasks["tests.add"].s(1, 2).set(countdown=length, expires=length, time_limit=limit),
        ):
            handle.submit(job)
            record = handle.get_job()
            for moment in (record.scheduled_for, record.expires):
                assert abs(moment - record.submitted - timedelta(hours=1)) < timedelta(seconds=5)
            assert record.time_limit == (20 if limit == 20 else 20.5)


def test_soft_limit_beyond_hard_limit_is_refused(refuses: Callable[..., str]) -> None:
    job = Job(task="a", time_limit=timedelta(seconds=5), soft_time_limit=6)
    assert "time_limit of 5 s" in refuses(job, "soft_time_limit")
    assert "time_limit of 5 s" in refuses(Job(task="a", time_limit=5, soft_time_limit=6), "soft_time_limit")


def test_arguments_that_do_not_fit_task_are_refused(refuses: Callable[..., str], app: Any) -> None:
    assert "missing 1 required" in refuses(Job(task="tests.add", args=[1]), "args")
    refuses(Job(task="tests.add", args=[1, 2], kwargs={"z": 3}), "args")
    refuses(app.tasks["tests.add"].s(1, 2, 3), "args")


def test_result_still_to_come_is_named_among_refused_arguments(refuses: Callable[..., str], app: Any) -> None:
    add = app.tasks["tests.add"]
    assert "([<result of another job>, 1, 2], {})" in refuses(chain(add.s(1, 2), add.s(1, 2)), "args")


def test_submit_of_neither_job_nor_signature_is_refused(refuses: Callable[..., str], app: Any) -> None:
    add = app.tasks["tests.add"]
    for wrong in (None, 5, "tests.add", add, {"task": "tests.add"}, dict(add.s(1, 2)), [add.s(1, 2)], Job):
        assert "Job nor a Celery signature" in refuses(wrong, "", error=ApiUsageError)
    refuses(Unspeakable(), "", error=ApiUsageError)
    refuses(Job(task="a", status=Unspeakable()), "", error=ApiUsageError)  # type: ignore[arg-type]  # the point


def test_errback_of_signature_is_refused(refuses: Callable[..., str], app: Any) -> None:
    add = app.tasks["tests.add"]
    for canvas in (
        add.s(1, 2).on_error(add.s(3)),
        chain(add.s(1, 2).on_error(add.s(3)), add.s(3)),
        group(add.s(1, 2), add.s(3, 4).on_error(add.s(3))),
        chord([add.s(1, 2)], add.s(4).on_error(add.s(3))),
        chain(add.s(1, 2), add.s(3)).set(link_error=add.s(3)),
    ):
        assert "when='failed'" in refuses(canvas, "link_error")


def test_chord_of_a_signatures_own_is_refused(refuses: Callable[..., str], app: Any) -> None:
    add = app.tasks["tests.add"]
    for option in ("chord", "chain"):
        assert "celery.chord" in refuses(add.s(1, 2).set(**{option: [add.s(3)]}), option)


TEXTS = ("shadow", "exchange", "routing_key", "exchange_type", "argsrepr", "kwargsrepr", "reply_to")
OPTIONS: list[tuple[tuple[str, ...], tuple[Any, ...], str]] = [
    (("retries", "task_id", "serializer", "colour"), (3, "mine"), "countdown"),
    (("headers",), ([1], "text", {1: 2}), "accepted"),
    (("stamped_headers",), (5, "text", [1], {"a": 1}), "accepted"),
    (("ignore_result",), (1, 0, "yes"), "True or False"),
    # Else the row keeps it, and no message can be built of it; a secret is not quoted.
    (TEXTS, (5, 0, True, b"secret", ["secret"], {"secret": 1}), "text"),
    (("countdown", "expires"), (float("nan"), float("inf"), 1e300, 10**400, True, "soon"), "accepted"),
    (("countdown", "expires"), (-float("inf"),), "accepted"),
    (("priority",), (-1,), "0 to 255"),
    (("eta",), ("tomorrow", datetime(2030, 1, 1)), "aware datetime"),  # noqa: DTZ001  # the naive one is the point
]


@pytest.mark.parametrize(("options", "values", "accepted"), OPTIONS)
def test_invalid_option_of_signature_is_refused_by_name(
    refuses: Callable[..., str], app: Any, options: tuple[str, ...], values: tuple[Any, ...], accepted: str
) -> None:
    for option in options:
        for value in values:
            message = refuses(app.tasks["tests.add"].s(1, 2).set(**{option: value}), option)
            assert accepted in message
            assert "secret" not in message


def test_unknown_field_of_job_is_refused() -> None:
    with pytest.raises(TypeError, match="colour"):
        Job(task="tests.add", colour="red")  # type: ignore[call-arg]  # the point


def test_invalid_keywords_of_signature_are_refused(refuses: Callable[..., str]) -> None:
    five: Any = 5
    refuses(Signature("tests.add", args=(1, 2), kwargs=five), "kwargs")


def test_invalid_user_and_group_names_are_refused(app: Any) -> None:
    for bad in ("", "x" * 256, 5, "a\0b", "\udcff", b"ann", True):
        for field in ("username", "groupname"):
            with pytest.raises(ValidationError, match=f"^{field}: "):
                app.jobs.handle(**{field: bad})
            with pytest.raises(ValidationError, match=f"^{field}: "):
                app.jobs.submit_many([Job(task="tests.add", args=[1, 2])], **{field: bad})
    assert app.jobs.find() == []


def test_submit_many_of_one_job_is_refused(app: Any) -> None:
    for wrong in (Job(task="tests.add", args=[1, 2]), app.tasks["tests.add"].s(1, 2), "tests.add", 5, None):
        with pytest.raises(ApiUsageError):
            app.jobs.submit_many(wrong)
    assert app.jobs.submit_many([]) == []
    assert app.jobs.find() == []


def test_invalid_filters_are_refused_by_name(app: Any) -> None:
    jobs = app.jobs
    job_id = jobs.handle().submit(Job(task="tests.add", args=[1, 2]))
    before = jobs.find()
    for bad_id in ("x", 1.5, True, b"1", [1]):
        with pytest.raises(ValidationError, match=r"^before: .*; accepted: the id of a job$"):
            jobs.find(before=bad_id)
        with pytest.raises(ApiUsageError):
            jobs.cancel_many(ids=[job_id, bad_id])
        with pytest.raises(ApiUsageError):
            jobs.events(bad_id)
    for limit in (0, -1, 10_001, "5", 1.5, True, None):
        with pytest.raises(ValidationError, match=r"^limit: "):
            jobs.find(limit=limit)
    for field in ("task", "username"):
        for bad_name in (5, ["a"], "a\0b", "\udcff"):
            with pytest.raises(ApiUsageError):
                jobs.find(**{field: bad_name})
            with pytest.raises(ApiUsageError):
                jobs.cancel_many(**{field: bad_name})
    for bad_status in (5, "Ready", ["Queued", "Ready"], [None]):
        with pytest.raises(ApiUsageError):
            jobs.find(status=bad_status)
    for bad_ids in ("123", 5, job_id):
        with pytest.raises(ApiUsageError):
            jobs.cancel_many(ids=bad_ids)
    for older_than in ("a week", None, True, -1, float("nan"), float("inf"), timedelta(-1), timedelta.max):
        with pytest.raises(ValidationError, match=r"^older_than: "):
            jobs.prune(older_than)
    assert jobs.find() == before


def test_ids_beyond_database_range_match_nothing(
    database_url: str, make_jobs_app: Callable[..., Any]
) -> None:
    jobs = make_jobs_app(database_url).jobs
    job_id = jobs.handle().submit(Job(task="tests.add", args=[1, 2]))
    for huge in (2**63, 2**200, -(2**200)):
        assert jobs.events(huge) == []
        assert jobs.cancel_many(ids=[huge]) == 0
    assert [job.id for job in jobs.find(before=2**200)] == [job_id]
    assert jobs.find(before=0) == []


@pytest.mark.parametrize(
    "count",
    [
        1_500,
        # More than any database accepts as parameters of a statement.
        pytest.param(70_000, marks=pytest.mark.faults),
    ],
)
def test_many_ids_are_searched_in_parts(
    count: int, database_url: str, make_jobs_app: Callable[..., Any]
) -> None:
    jobs = make_jobs_app(database_url).jobs
    job_id = jobs.handle().submit(Job(task="tests.add", args=[1, 2]))
    assert jobs.cancel_many(ids=[*range(job_id + 1, job_id + count), job_id]) == 1


def test_invalid_arguments_of_handle_change_nothing(app: Any) -> None:
    handle = app.jobs.handle()
    handle.submit(Job(task="tests.add", args=[1, 2]))
    handle.set_status("Running")
    before = handle.get_job()
    for bad in (5, b"bytes", ["text"]):
        with pytest.raises(ValidationError, match=r"^message: "):
            handle.set_message(bad)
        with pytest.raises(ValidationError, match=r"^message: "):
            handle.set_status_and_message("Finished", bad)
    for bad_number in ("1", None, True, float("nan"), float("inf"), 10**400):
        with pytest.raises(ValidationError, match=r"^current: "):
            handle.set_progress(bad_number)
        if bad_number is not None:
            with pytest.raises(ValidationError, match=r"^total: "):
                handle.set_progress(1, bad_number)
    for bad_timeout in ("1", b"1", [1]):
        with pytest.raises(ApiUsageError):
            handle.wait(bad_timeout)
    assert handle.get_job() == before


def test_submit_of_changed_record_ignores_what_the_system_sets(app: Any) -> None:
    long_ago = datetime(2001, 1, 1, tzinfo=UTC)
    bogus: dict[str, Any] = {
        "id": 4711,
        "task_id": "mine",
        "kind": None,  # any other is refused: a node has no task
        "root_id": 1,
        "parent_id": 1,
        "blocked": True,
        "status": JobStatus.RUNNING,
        "username": "root",
        "groupname": "wheel",
        "submitted": long_ago,
        "started": long_ago,
        "finished": long_ago,
        "attempt": 7,
        "worker": "nobody",
        "result": 42,
        "error": Failure("task", "ValueError", "no"),
        "progress": Progress(1, 2),
        "cancel_requested": long_ago,
    }
    assert bogus.keys() == {field.name for field in fields(JobRecord)} - {f.name for f in fields(Job)} | {
        "status"
    }
    handle = app.jobs.handle(username="ann", groupname="lab")
    before = datetime.now(UTC) - timedelta(seconds=1)
    job_id = handle.submit(JobRecord(task="tests.add", args=[2, 3], **bogus))
    job = handle.get_job()
    assert job_id != 4711
    assert (job.id, job.username, job.groupname, job.attempt) == (job_id, "ann", "lab", 0)
    assert (job.status, job.task_id != "mine") == (JobStatus.QUEUED, True)
    assert before < job.submitted < datetime.now(UTC) + timedelta(seconds=1)
    unset = (job.started, job.finished, job.worker, job.result, job.error, job.progress, job.cancel_requested)
    assert (*unset, job.kind, job.root_id, job.parent_id) == (None,) * 10
    assert not job.blocked
    with pytest.raises(TypeError, match="unexpected keyword argument 'username'"):
        Job(task="tests.add", username="root")  # type: ignore[call-arg]  # the point


def test_submit_accepts_two_of_nine_statuses(app: Any, refuses: Callable[..., str]) -> None:
    handle = app.jobs.handle()
    for status in JobStatus:
        for word in (status, status.value):
            job = Job(task="tests.add", args=[2, 3], status=word)  # type: ignore[arg-type]  # a word will do
            if status not in SUBMITTABLE:
                assert "Submitted, Waiting" in refuses(job, "status")
                continue
            handle.submit(job)
            expected = JobStatus.WAITING if status is JobStatus.WAITING else JobStatus.QUEUED
            assert handle.job_status() is expected
    refuses(Job(task="tests.add", args=[2, 3], status="Ready"), "status", error=ApiUsageError)  # type: ignore[arg-type]  # the point
