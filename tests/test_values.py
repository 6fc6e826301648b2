"""Values written to a row and read back: text, JSON, times; and the frozen objects of callers."""

import dataclasses
import pickle
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from celery import chain
from hypothesis import example, given
from hypothesis import strategies as st
from kombu.utils.json import loads

import jobhandle_celery
from jobhandle_celery import (
    Failure,
    Job,
    JobHandleError,
    JobStatus,
    Progress,
    serialization,
)
from tests.apps import make_app

MIB = 1024 * 1024
HOUR = timedelta(hours=1)


@pytest.fixture
def app(database_url: str, make_jobs_app: Callable[..., Any]) -> Any:
    return make_jobs_app(database_url)


# Text.


@given(st.text(st.characters()))
@example("\0")
@example("\udcff\0\ud800")
def test_storable_text_loses_only_nul_and_lone_surrogates(
    given_text: str,
) -> None:
    stored = serialization.storable(given_text)
    assert "\0" not in stored
    stored.encode()
    assert serialization.storable(stored) == stored
    if "\0" not in given_text and not any("\ud800" <= character <= "\udfff" for character in given_text):
        assert stored == given_text


def test_message_keeps_its_beginning_and_a_traceback_its_end() -> None:
    for length in (0, 1, 9_999, 10_000):
        assert serialization.clip_message("x" * length) == "x" * length
    assert serialization.clip_message("x" * 10_001) == "x" * 9_999 + "…"
    assert serialization.clip_traceback("x" * 100_000) == "x" * 100_000
    cut = serialization.clip_traceback("a" + "b" * 100_000)
    assert len(cut) == 100_000
    assert cut.startswith("…b")
    assert cut.endswith("b")


# JSON.

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)
RICH = (
    st.datetimes(timezones=st.just(UTC))
    | st.dates()
    | st.uuids()
    | st.decimals(allow_nan=False)
    | st.binary(max_size=50)
)


@given(PLAIN | RICH | st.lists(RICH, max_size=3) | st.dictionaries(st.text(max_size=4), RICH, max_size=3))
def test_what_is_encoded_comes_back_as_what_it_was(value: Any) -> None:
    encoded = serialization.encode(value)
    assert encoded.isascii()
    back = serialization.decode(encoded)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "written",
    [
        '{"__type__": "decimal", "__value__": "1.5"}',
        r'{"\u005f_type__": "decimal", "__value\u005f_": "1.5"}',
        r'[{"\u005f\u005ftype\u005f\u005f": "decimal", "__value__": "1.5"}]',
    ],
)
def test_envelope_is_decoded_however_its_keys_are_spelled(written: str) -> None:
    """A row that another program wrote is decoded as its message is."""
    assert serialization.decode(written) == loads(written) in (Decimal("1.5"), [Decimal("1.5")])


@given(PLAIN)
def test_nul_is_found_in_any_string_of_a_document(value: Any) -> None:
    assert serialization.holds_nul(serialization.encode(value)) == _has_nul(value)
    assert not serialization.holds_nul(serialization.encode("\\u0000"))
    assert serialization.holds_nul(serialization.encode("\\\0"))


def _has_nul(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_nul, [*value, *value.values()]))
    if isinstance(value, list):
        return any(map(_has_nul, value))
    return isinstance(value, str) and "\0" in value


def test_what_is_not_json_or_too_large_is_not_storable() -> None:
    ring: list[Any] = []
    ring.append(ring)
    for value in (object(), {1, 2}, 1j, ring, {(1, 2): 3}, lambda: 1, "x" * (MIB - 1)):
        with pytest.raises(serialization.NotStorableError):
            serialization.encode(value)
    assert len(serialization.encode("x" * (MIB - 2))) == MIB


def test_datetimes_uuids_decimals_and_bytes_survive_in_a_row(app: Any) -> None:
    rich = {
        "moment": datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=UTC),
        "day": date(2026, 2, 3),
        "id": uuid.UUID(int=5),
        "price": Decimal("1.10"),
        "bytes": b"\xff\xfe",
        "text": b"text",
    }
    handle = app.jobs.handle()
    handle.submit(Job(task="unregistered", args=[rich], kwargs=rich, meta=rich))
    job = handle.get_job()
    assert (job.args, job.kwargs, job.meta) == ([rich], rich, rich)


# Times, and the options of a signature.


def test_job_with_a_time_ahead_waits_for_it(app: Any) -> None:
    handle = app.jobs.handle()
    moment = datetime.now(UTC) + HOUR
    for when in (HOUR, moment, moment.astimezone()):
        for status in (None, JobStatus.SUBMITTED, JobStatus.WAITING):
            handle.submit(Job(task="tests.add", args=[1, 2], scheduled_for=when, status=status))
            job = handle.get_job()
            assert job.status is JobStatus.WAITING
            assert job.scheduled_for.utcoffset() == timedelta(0)
            assert abs(job.scheduled_for - moment) < timedelta(seconds=30)
            assert when is HOUR or job.scheduled_for == moment
            assert not job.held


def test_time_in_the_past_means_now(app: Any) -> None:
    handle = app.jobs.handle()
    for when in (timedelta(0), -HOUR, datetime(2001, 1, 1, tzinfo=UTC)):
        for status in (None, JobStatus.WAITING):
            handle.submit(Job(task="tests.add", args=[1, 2], scheduled_for=when, status=status))
            assert handle.job_status() is JobStatus.QUEUED


def test_options_of_a_signature_are_the_jobs(app: Any) -> None:
    add = app.tasks["tests.add"]
    handle = app.jobs.handle()
    soon = datetime.now(UTC) + HOUR
    handle.submit(
        add.s(1, y=2).set(queue="fast", priority=7, time_limit=60, soft_time_limit=50, eta=soon, expires=7200)
    )
    job = handle.get_job()
    assert (job.task, job.args, job.kwargs) == ("tests.add", [1], {"y": 2})
    assert (job.queue, job.priority, job.time_limit, job.soft_time_limit) == ("fast", 7, 60, 50)
    assert (job.scheduled_for, job.status) == (soon, JobStatus.WAITING)
    assert abs(job.expires - soon - HOUR) < timedelta(seconds=30)
    handle.submit(add.s(1, 2).set(countdown=3600, expires=soon.isoformat()))
    assert abs(handle.get_job().scheduled_for - soon) < timedelta(seconds=30)
    assert handle.get_job().expires == soon
    for now in ({"countdown": 0}, {"countdown": -5}, {"eta": datetime(2001, 1, 1, tzinfo=UTC)}, {}):
        handle.submit(add.si(1, 2).set(**now))
        assert handle.job_status() is JobStatus.QUEUED


def test_signature_in_a_canvas_has_attempts_and_a_key(app: Any) -> None:
    add = app.tasks["tests.add"]
    handle = app.jobs.handle()
    handle.submit(chain(add.s(1, 2).set(max_attempts=3, unique_key="k"), add.s(3)))
    first, second = handle.members()
    assert (first.max_attempts, first.unique_key) == (3, "k")
    assert (second.max_attempts, second.unique_key) == (1, None)
    with pytest.raises(jobhandle_celery.ValidationError, match="max_attempts"):
        handle.submit(add.s(1, 2).set(max_attempts=0))


# Objects of callers.


def test_what_callers_hold_is_frozen() -> None:
    for held, field in (
        (Job(task="a"), "task"),
        (Failure("task", "ValueError", "no"), "message"),
        (Progress(1), "total"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(held, field, "b")


def test_progress_is_a_fraction_where_the_total_is_known() -> None:
    assert Progress(1, 4).fraction == 0.25
    assert Progress(5, 4).fraction == 1
    assert Progress(-1, 4).fraction == 0
    assert Progress(1).fraction is None
    assert Progress(0, 0).fraction is None


def test_errors_reach_another_process_by_a_pickle(app: Any) -> None:
    failure = Failure("task", "ValueError", "no good", "Traceback …")
    gone: Any = make_app("memory://", "postgresql://127.0.0.1:1/shop")
    raised: list[JobHandleError] = [jobhandle_celery.JobFailedError(42, failure)]
    for call in (
        lambda: app.jobs.handle(username=5),
        lambda: app.jobs.attach(123456789),
        gone.jobs.find,
    ):
        with pytest.raises(JobHandleError) as caught:
            call()
        raised.append(caught.value)
    for error in raised:
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_nine_words_are_omeros() -> None:
    words = "Submitted Resubmitted Queued Requeued Running Error Waiting Finished Cancelled"
    assert " ".join(JobStatus) == words
    assert {status for status in JobStatus if status.final} == {"Finished", "Error", "Cancelled"}
    assert [JobStatus.from_id(status.id) for status in JobStatus] == list(JobStatus)


# Whole jobs.


def test_what_is_just_within_the_limits_is_kept_as_given(app: Any) -> None:
    handle = app.jobs.handle(username="ü" * 255, groupname="x" * 255)
    job = Job(
        task="t" * 255,
        args=["x" * (MIB - 4)],
        kwargs={"y": "z" * (MIB - 9)},
        message="ä" * 10_000,
        priority=255,
        time_limit=0.001,
        soft_time_limit=0.001,
        max_attempts=1_000_000,
        unique_key="k" * 255,
        meta={"deep": [None, True, 1.5, "ü\\u0000"]},
        queue="q" * 255,
        scheduled_for=timedelta(days=3650),
        expires=datetime.max.replace(tzinfo=UTC),
    )
    handle.submit(job)
    kept = handle.get_job()
    for field in ("task", "args", "kwargs", "message", "priority", "time_limit", "soft_time_limit"):
        assert getattr(kept, field) == getattr(job, field)
    for field in ("max_attempts", "unique_key", "meta", "queue", "expires"):
        assert getattr(kept, field) == getattr(job, field)


def test_long_message_is_cut_and_made_storable(app: Any) -> None:
    handle = app.jobs.handle()
    handle.submit(Job(task="tests.add", args=[1, 2], message="a\0b\udcffc" + "x" * 20_000))
    message = handle.job_message()
    assert len(message) == 10_000
    assert message.startswith("ab\\udcffcxxx")
    assert message.endswith("x…")
    handle.set_message("m" * 10_001 + "\0")
    assert handle.job_message() == "m" * 9_999 + "…"
    handle.set_status_and_message("Running", "\0")
    assert handle.job_message() == ""
