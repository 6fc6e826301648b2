"""What may be typed, and how values are read."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import pytest

from jobhandle_celery import JobRecord, JobStatus, Progress
from jobhandle_celery.cli import formatting, params


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("30d", timedelta(days=30)),
        ("90m", timedelta(minutes=90)),
        ("1h30m", timedelta(hours=1, minutes=30)),
        ("0s", timedelta(0)),
        ("1.5h", timedelta(minutes=90)),
        ("2w", timedelta(days=14)),
    ],
)
def test_a_duration_is_a_number_of_units(typed: str, meant: timedelta) -> None:
    assert params.DURATION.convert(typed, None, None) == meant


@pytest.mark.parametrize("typed", ["30", "", "-3d", "3 d", "d", "1h-3m", "99999999999w", "\u0661d"])
def test_what_is_no_duration_is_refused(typed: str) -> None:
    with pytest.raises(click.BadParameter):
        params.DURATION.convert(typed, None, None)


def test_a_moment_is_iso_8601_or_how_far_off_it_is() -> None:
    assert params.MOMENT.convert("+10m", None, None) == timedelta(minutes=10)
    assert params.MOMENT.convert("2030-01-31T18:00Z", None, None) == datetime(2030, 1, 31, 18, tzinfo=UTC)
    here = params.MOMENT.convert("2030-01-31T18:00", None, None)
    assert isinstance(here, datetime)
    assert here.replace(tzinfo=None) == datetime(2030, 1, 31, 18)  # noqa: DTZ001 -- of this machine's zone
    assert here.utcoffset() is not None
    for wrong in ("tomorrow", "+10", "2030-02-31", "0001-01-01T00:00"):
        with pytest.raises(click.BadParameter):
            params.MOMENT.convert(wrong, None, None)


@pytest.mark.parametrize("typed", ["", "{", "{}", "3", "[NaN]", "[" * 100_000])
def test_arguments_are_a_json_list(typed: str) -> None:
    assert params.JSON_LIST.convert('["a", {"b": null}]', None, None) == ["a", {"b": None}]
    with pytest.raises(click.BadParameter):
        params.JSON_LIST.convert(typed, None, None)


def test_a_status_is_one_of_nine_words_in_any_case() -> None:
    assert params.STATUS.convert("finished", None, None) is JobStatus.FINISHED
    with pytest.raises(click.BadParameter):
        params.STATUS.convert("done", None, None)


@pytest.mark.parametrize(
    ("duration", "said"),
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
def test_a_span_is_said_in_two_units(duration: Any, said: str) -> None:
    assert formatting.span(duration) == said


def test_what_a_terminal_would_obey_is_spelled_out() -> None:
    assert formatting.one_line("a\x1b[31m\tb\nc\u202e\x9b\udcff") == "a\\x1b[31m b c\\u202e\\x9b\\udcff"
    assert formatting.harmless("a\nb\r") == "a\nb "


def test_progress_is_said_with_its_total_if_there_is_one() -> None:
    said = [formatting.progress(one) for one in (None, Progress(3), Progress(3, 8), Progress(2.5, 5))]
    assert said == ["-", "3", "3/8", "2.5/5"]


def test_hidden_arguments_stay_hidden() -> None:
    job = JobRecord(
        id=1,
        task_id="1",
        task="t",
        args=["secret"],
        kwargs={"key": "secret"},
        status=JobStatus.QUEUED,
        submitted=datetime.now(UTC),
    )
    assert formatting.arguments(job, {}) == ('["secret"]', '{"key": "secret"}')
    hidden = replace(job, sensitive=[0, "key"])
    assert formatting.arguments(hidden, {}) == ('["***"]', '{"key": "***"}')
    assert formatting.arguments(job, {"argsrepr": "***", "kwargsrepr": "{}"}) == ("***", "{}")
