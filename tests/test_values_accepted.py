"""Accepted values run and are readable; refused values leave nothing (faults 28, 41)."""

import json
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from celery import Task
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, update

from jobhandle_celery import Job, JobHandleError, JobStatus, ValidationError, serialization
from jobhandle_celery.cli import json_output
from jobhandle_celery.cli.formatting import format_arguments, to_json
from jobhandle_celery.models import Unreadable
from jobhandle_celery.runtime import runtime_of
from jobhandle_celery.schema import job as job_table
from jobhandle_celery.store import decoding
from jobhandle_celery.worker.message_guard import MAX_DEPTH, MessageRefused
from tests.in_process import become_worker, message_of, run

EAST = timezone(timedelta(hours=14))
FIRST, LAST = datetime.min, datetime.max  # noqa: DTZ901 -- naive ones are values, too


def echo(self: "Task[..., Any]", value: Any, *, named: Any) -> Any:
    assert repr(value) == repr(named)
    return value


def nested(levels: int, inner: Any = None, kind: Callable[[Any], Any] = lambda value: [value]) -> Any:
    for _ in range(levels):
        inner = kind(inner)
    return inner


ENVELOPE = {"__type__": "point", "__value__": 1}
ENVELOPES = st.sampled_from(["point", "datetime", "bytes", "uuid", 5, None]).flatmap(
    lambda kind: st.sampled_from([1, "2026-01-01T00:00:00", "x", None, {"hex": "0" * 32}]).map(
        lambda value: {"__type__": kind, "__value__": value}
    )
)
LEAVES = st.one_of(
    st.none() | st.booleans(),
    st.sampled_from([2**53 + 1, -(2**63), 2**63, 2**64, 10**300, 0.1, -0.0, 5e-324]),
    st.sampled_from([float("inf"), float("-inf"), float("nan"), Decimal("NaN"), Decimal("-1.10"), 1j]),
    st.integers() | st.floats(),
    st.sampled_from(["\0", "\\u0000", "\ud800", "\udcff", "\U0001f600", "\u202eabc", "\u2028", "[{", '"[']),
    st.text(max_size=5),
    st.sampled_from([FIRST, LAST, LAST.replace(tzinfo=EAST), date.min, date.max]),
    st.sampled_from([4298, 4299, 4300, 5000]).map(lambda digits: 10**digits),
    st.datetimes(timezones=st.sampled_from([UTC, EAST, timezone(-timedelta(minutes=1))])).map(
        lambda moment: moment.replace(fold=0)  # which these zones do not have
    ),
    st.sampled_from(
        [time.max, timedelta.max, timedelta(0), uuid.UUID(int=1), b"\xff", b"text", {1}, object()]
    ),
    ENVELOPES,
    st.sampled_from([98, 99, 100, 101, 600, 3000]).map(nested),
    st.sampled_from([98, 101, 600]).map(lambda levels: nested(levels, kind=lambda value: {"a": value})),
)
VALUES = LEAVES | st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["__type__", "__value__", "a", "b"]) | st.text(max_size=3), inner, max_size=3
        )
    ),
    max_leaves=5,
)


@pytest.fixture
def app(database_url: str, make_jobs_app: Callable[..., Any]) -> Any:
    """An app whose tasks this process runs as a pool process would, under a worker's lease."""
    app = make_jobs_app(database_url, jobhandle_lease=3600)
    app.task(name="values.echo", bind=True, shared=False)(echo)
    become_worker(app)
    return app


def newest(app: Any) -> list[int]:
    """Return the id of the newest job: records with a NaN do not equal each other."""
    return [job.id for job in app.jobs.find(limit=1)]


def check(app: Any, value: Any) -> None:
    handle, before = app.jobs.handle(), newest(app)
    try:
        handle.submit(Job(task="values.echo", args=[value], kwargs={"named": value}, meta={"given": value}))
    except ValidationError:
        assert newest(app) == before
        assert message_of(app) is None
        return
    run(app, message_of(app))
    record = handle.get_job()
    assert record.status is JobStatus.FINISHED, record.error
    for read in (
        record.args[0],
        record.kwargs["named"],
        record.meta["given"],
        record.result,
        handle.result(),
    ):
        assert repr(read) == repr(value)
    assert repr(app.jobs.find(limit=1)) == repr([record])
    shown = json_output.job_document(record) | {
        "args": format_arguments(record, {}),
        "result": record.result,
        "meta": record.meta,
    }
    json.loads(to_json(shown), parse_constant=pytest.fail)


QUICKLY = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@QUICKLY
@given(VALUES)
@example(ENVELOPE)
@example([{"__type__": "datetime", "__value__": "2026-01-01T00:00:00"}])
@example(nested(98))
@example(nested(101))
@example(float("nan"))
@example("\udcff")
def test_accepted_value_is_run_and_read_back(app: Any, value: Any) -> None:
    """An accepted value runs and is read back unchanged (faults 28, 41)."""
    check(app, value)


@pytest.mark.faults
@pytest.mark.slow
@settings(QUICKLY, max_examples=200, phases=[Phase.generate])
@given(VALUES)
def test_many_accepted_values_are_run_and_read_back(app: Any, value: Any) -> None:
    """The same with many values (faults 28, 41)."""
    check(app, value)


@pytest.mark.parametrize("where", ["args", "kwargs", "meta"])
@pytest.mark.parametrize(
    "value", [nested(101), {"__type__": "point", "__value__": 1}], ids=["deep", "envelope"]
)
def test_value_that_cannot_be_read_back_is_refused_by_field(app: Any, where: str, value: Any) -> None:
    """The error names the field, and what is wrong with its value (faults 28, 41)."""
    wrapped: dict[str, Any] = {"args": [value], "kwargs": {"x": value}, "meta": value}
    with pytest.raises(ValidationError, match=f"^{where}: .*(nested deeper|__type__ and __value__)"):
        app.jobs.handle().submit(Job(task="unregistered", **{where: wrapped[where]}))
    assert app.jobs.find() == []


def returns(self: "Task[..., Any]", what: str) -> Any:
    return nested(101) if what == "deep" else [ENVELOPE]


@pytest.mark.parametrize("what", ["deep", "envelope"])
def test_result_that_cannot_be_read_back_fails_its_job(app: Any, what: str) -> None:
    """A body that returns such a value ends in Error, as with one that is not JSON (faults 28, 41)."""
    app.task(name="values.returns", bind=True, shared=False)(returns)
    handle = app.jobs.handle()
    handle.submit(Job(task="values.returns", args=[what]))
    run(app, message_of(app))
    record = handle.get_job()
    assert record.status is JobStatus.ERROR
    assert record.error.type == "ResultError"


BROKEN = {
    "args": '[{"__type__": "point", "__value__": 1}]',
    "kwargs": '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "meta": '{"__type__": "decimal", "__value__": "no number"}',
    "result": "no JSON",
    "error": '{"no": "failure"}',
    "routing": "[]",
}


def test_unreadable_values_of_a_row_spoil_no_list(
    app: Any, database_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record marks unreadable values as such, on each page that has it; logged once (fault 41)."""
    monkeypatch.setattr(decoding, "_reported", set())
    ids = app.jobs.submit_many([Job(task="unregistered", args=["good"], kwargs={"b": 1}) for _ in range(3)])
    spoilt = ids[1]
    engine = create_engine(database_url)
    with engine.begin() as connection:
        which = job_table.c.id == spoilt
        connection.execute(update(job_table).where(which).values(**BROKEN, status_id=JobStatus.FINISHED))
    engine.dispose()

    for _ in range(2):
        found = {record.id: record for record in app.jobs.find()}
        sights = {sight.job.id: sight.job for sight in runtime_of(app).store.diagnostics.details_of(ids)}
        record = app.jobs.attach(spoilt).get_job()
        assert found == sights
        assert found[spoilt] == record
    assert [found[job_id].args for job_id in (ids[0], ids[2])] == [["good"], ["good"]]
    assert repr(record.args) == "[<unreadable: ValueError>]"
    assert all(
        isinstance(value, Unreadable) for value in (*record.kwargs.values(), record.meta, record.result)
    )
    assert record.error.type == "Unreadable"
    # Which arguments are sensitive is not known, so all are hidden.
    assert record.shown_arguments == (("***",), {"unreadable": "***"})
    json.loads(
        to_json(
            json_output.job_document(record) | {"args": format_arguments(record, {}), "result": record.result}
        )
    )
    with pytest.raises(JobHandleError, match=f"job {spoilt}: its result cannot be read"):
        app.jobs.attach(spoilt).result(timeout=5)
    with pytest.raises(ValidationError):
        app.jobs.handle().submit(record)
    logged = [record.getMessage() for record in caplog.records if f"job {spoilt}: its" in record.getMessage()]
    assert len(logged) == len(set(logged)) == len(BROKEN)


@pytest.mark.parametrize("levels", [301, 5_000])
def test_message_nested_too_deep_is_refused_before_it_is_decoded(app: Any, levels: int) -> None:
    """A pickle of it would end the worker's main process (fault 42)."""
    handle = app.jobs.handle()
    handle.submit(Job(task="values.echo", args=["short"], kwargs={"named": "short"}))
    message = message_of(app)
    message.body = f'[["[", {"[" * levels}{"]" * levels}], {{}}, {{}}]'
    with pytest.raises(MessageRefused, match="nested deeper than 300 levels"):
        run(app, message)


@pytest.mark.parametrize("part", ["headers", "properties"])
def test_message_with_headers_nested_too_deep_is_refused(app: Any, part: str) -> None:
    """A busy pool's pickle of them would end the worker's main process (fault 42)."""
    app.jobs.submit(Job(task="values.echo", args=["short"], kwargs={"named": "short"}))
    message = message_of(app)
    deep: Any = 0
    for _ in range(MAX_DEPTH - 1):
        deep = [deep]
    getattr(message, part)["deep"] = deep
    run(app, message)
    getattr(message, part)["deep"] = [deep]
    with pytest.raises(MessageRefused, match="its headers are nested deeper than 300 levels"):
        run(app, message)


@given(
    st.recursive(
        st.just(0), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    ),
    st.integers(0, 6),
)
def test_nesting_is_measured_as_json_has_it(value: Any, levels: int) -> None:
    def depth(value: Any) -> int:
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
        return 0 if inside is None else 1 + max(map(depth, inside), default=0)

    assert serialization.is_nested_deeper(json.dumps(value), levels) == (depth(value) > levels)


@pytest.mark.parametrize("body", ['"' + '\\"' * 300_000 + "[" * 400, "][" * 300_000, '"[{' * 200_000])
def test_nesting_of_what_is_no_json_is_measured_in_linear_time(body: str) -> None:
    serialization.is_nested_deeper(body, serialization.MAX_DEPTH)  # pytest-timeout ends the test if it is not
