"""Parameter types, and how values are formatted."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import pytest

from jobhandle_celery import JobRecord, JobStatus, Progress
from jobhandle_celery.cli import formatting, params


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30d", timedelta(days=30)),
        ("90m", timedelta(minutes=90)),
        ("1h30m", timedelta(hours=1, minutes=30)),
        ("0s", timedelta(0)),
        ("1.5h", timedelta(minutes=90)),
        ("2w", timedelta(days=14)),
    ],
)
def test_duration_is_parsed(text: str, expected: timedelta) -> None:
    assert params.DURATION.convert(text, None, None) == expected


@pytest.mark.parametrize("text", ["30", "", "-3d", "3 d", "d", "1h-3m", "99999999999w", "\u0661d"])
def test_invalid_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        params.DURATION.convert(text, None, None)


def test_time_is_iso_8601_or_relative() -> None:
    assert params.TIME.convert("+10m", None, None) == timedelta(minutes=10)
    assert params.TIME.convert("2030-01-31T18:00Z", None, None) == datetime(2030, 1, 31, 18, tzinfo=UTC)
    local = params.TIME.convert("2030-01-31T18:00", None, None)
    assert isinstance(local, datetime)
    assert local.replace(tzinfo=None) == datetime(2030, 1, 31, 18)  # noqa: DTZ001 -- of this machine's zone
    assert local.utcoffset() is not None
    for invalid in ("tomorrow", "+10", "2030-02-31", "0001-01-01T00:00"):
        with pytest.raises(click.BadParameter):
            params.TIME.convert(invalid, None, None)


def test_past_time_is_iso_8601_or_an_age() -> None:
    assert params.PAST_TIME.convert("30d", None, None) == timedelta(days=30)
    assert params.PAST_TIME.convert("2030-01-31T18:00Z", None, None) == datetime(2030, 1, 31, 18, tzinfo=UTC)
    for invalid in ("+10m", "2030-02-31", "yesterday"):
        with pytest.raises(click.BadParameter):
            params.PAST_TIME.convert(invalid, None, None)


def test_json_list_is_parsed() -> None:
    assert params.JSON_LIST.convert('["a", {"b": null}]', None, None) == ["a", {"b": None}]


@pytest.mark.parametrize("text", ["", "{", "{}", "3", "[NaN]", "[" * 100_000])
def test_invalid_json_list_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        params.JSON_LIST.convert(text, None, None)


def test_status_is_accepted_in_any_case() -> None:
    assert params.StatusType().convert("finished", None, None) is JobStatus.FINISHED
    with pytest.raises(click.BadParameter):
        params.StatusType().convert("done", None, None)


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (None, "-"),
        (timedelta(0), "0s"),
        (timedelta(seconds=0.0334), "33ms"),
        (timedelta(seconds=1.25), "1.2s"),
        (timedelta(seconds=90), "1m30s"),
        (timedelta(hours=2), "2h"),
        (timedelta(days=30, hours=5, minutes=3), "30d5h"),
        (timedelta(days=1, seconds=5), "1d"),
        (-timedelta(seconds=90), "-1m30s"),
        (59.9, "1m"),
    ],
)
def test_duration_is_formatted_in_two_units(duration: Any, expected: str) -> None:
    assert formatting.format_duration(duration) == expected


def test_control_characters_are_escaped() -> None:
    assert formatting.one_line("a\x1b[31m\tb\nc\u202e\x9b\udcff") == "a\\x1b[31m b c\\u202e\\x9b\\udcff"
    assert formatting.escape_control("a\nb\r") == "a\nb "


def test_progress_is_formatted_with_its_total() -> None:
    values = (None, Progress(3), Progress(3, 8), Progress(2.5, 5))
    assert [formatting.format_progress(value) for value in values] == ["-", "3", "3/8", "2.5/5"]


def test_hidden_arguments_are_redacted() -> None:
    job = JobRecord(
        id=1,
        task_id="1",
        task="t",
        args=["secret"],
        kwargs={"key": "secret"},
        status=JobStatus.QUEUED,
        submitted=datetime.now(UTC),
    )
    assert formatting.format_arguments(job, {}) == ('["secret"]', '{"key": "secret"}')
    sensitive = replace(job, sensitive=[0, "key"])
    assert formatting.format_arguments(sensitive, {}) == ('["***"]', '{"key": "***"}')
    assert formatting.format_arguments(job, {"argsrepr": "***", "kwargsrepr": "{}"}) == ("***", "{}")
