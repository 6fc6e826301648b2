"""Every option of Celery's publishing: its message is that of a plain task, or it is refused by name."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobhandle_celery import JobResult, ValidationError
from jobhandle_celery.broker import publish_options, sent_tasks
from jobhandle_celery.durable.canvas import IN_FLIGHT
from tests.broker.conftest import make
from tests.broker.messages import Make, received
from tests.broker.options import CASES, QUEUES, SOURCES, declare
from tests.broker.plain import comparable
from tests.broker.retries import ARGS, taken

__all__ = ["make"]

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "coming-from-celery.md"
_TABLE = PAGE.read_text().split("## Options of `apply_async`")[1].split("\n## ")[0]
TABLE = {
    option: text
    for options, text in re.findall(r"^\| (`.+?`) \| (.+) \|$", _TABLE, re.MULTILINE)
    for option in re.findall(r"`(\w+)`", options)
}
"""The table of the documentation: what becomes of each option."""

REFUSED = {option for option, text in TABLE.items() if text.startswith("refused")}
PLAIN = {option for option, text in TABLE.items() if text.endswith("sends a plain message")}
UNUSED = {option for option, text in TABLE.items() if text.startswith("not used")}


@pytest.mark.parametrize("source", SOURCES)
def test_every_option_of_celery_is_in_the_table(source: str) -> None:
    """An option that Celery adds later makes this fail, until the table says what becomes of it."""
    assert SOURCES[source]() - TABLE.keys() == set()


def test_table_is_that_of_the_code() -> None:
    assert UNUSED | {"add_to_parent"} == sent_tasks.UNUSED
    assert set(IN_FLIGHT) == PLAIN
    kept = publish_options.SIGNATURE | publish_options.OF_JOB | sent_tasks.PLACED | {"add_to_parent"}
    assert TABLE.keys() - REFUSED - PLAIN - UNUSED == kept


@pytest.mark.parametrize("option", sorted(REFUSED))
def test_refused_option_is_named(option: str, make: Make) -> None:
    app = make(jobhandle_durable=True)
    for call in (
        app.tasks["tests.add"].apply_async,
        lambda args, **given: app.send_task("tests.add", args, **given),
    ):
        with pytest.raises(ValidationError, match=f"^{option}: "):
            call((1, 2), **{option: "a value"})
    assert (app.jobs.find(), received(app)) == ([], [])


def test_unknown_option_is_refused_by_name(make: Make) -> None:
    with pytest.raises(ValidationError, match=r"^user_id: "):
        make(jobhandle_durable=True).tasks["tests.add"].apply_async((1, 2), user_id="ann")


@pytest.mark.parametrize("option", sorted(PLAIN))
def test_rest_of_something_plain_is_a_plain_message(option: str, make: Make) -> None:
    app = make(jobhandle_durable=True)
    value = 1 if option in ("retries", "replaced_task_nesting") else app.tasks["tests.add"].s()
    app.tasks["tests.add"].apply_async((1, 2), **{option: [value] if option == "chain" else value})
    assert len(received(app)) == 1
    assert app.jobs.find() == []


@pytest.mark.parametrize("option", sorted(UNUSED - {"task_type"}))
def test_unused_option_is_accepted(option: str, make: Make) -> None:
    app = make(jobhandle_durable=True)
    result = app.send_task("tests.add", (1, 2), **{option: object()})
    assert isinstance(result, JobResult)
    assert len(received(app)) == 1


@pytest.mark.parametrize("case", CASES)
def test_message_equals_plain_celerys(case: str, make: Make) -> None:
    settings, given = CASES[case]
    called, sent = [], []
    for durable in (False, True):
        app = make(
            **{"task_queues": QUEUES, "task_default_queue": "default", **settings}, jobhandle_durable=durable
        )
        declare(app)
        for _ in range(3):  # the first declares the queue, the second makes the template, the third uses it
            result = app.tasks["tests.add"].apply_async(ARGS, **given)
            assert isinstance(result, JobResult) == durable
            called.append(comparable(taken(app)))
            result = app.send_task("tests.add", ARGS, **given)
            assert isinstance(result, JobResult) == durable
            sent.append(comparable(taken(app)))
    assert called == called[:1] * 6
    assert sent == sent[:1] * 6


NOON = datetime(2040, 1, 1, 12)  # noqa: DTZ001  # without a zone, as many callers have it
NEXT = datetime(2040, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize("given", [NOON, NEXT, NOON.isoformat(), NEXT.isoformat()], ids=str)
def test_time_without_zone_is_utc(given: Any, make: Make) -> None:
    """As Celery's workers read it, whatever `timezone` is."""
    app = make(jobhandle_durable=True, timezone="America/New_York")
    app.tasks["tests.add"].apply_async((1, 2), eta=given, expires=given)
    (job,) = app.jobs.find()
    assert (job.scheduled_for, job.expires) == (NEXT, NEXT)


def test_expiry_of_the_task_is_that_of_the_row(make: Make) -> None:
    app = make(jobhandle_durable=True, task_annotations={"tests.add": {"expires": 3600}})
    task = app.tasks["tests.add"]
    for _ in range(2):  # the second finds the route in the cache
        task.delay(1, 2)
        job = app.jobs.find()[0]
        assert round((job.expires - job.submitted) / timedelta(minutes=1)) == 60
        task.apply_async((1, 2), expires=None)
        assert app.jobs.find()[0].expires is None


def test_ignored_result_is_not_waited_for(make: Make) -> None:
    app = make(jobhandle_durable=True)
    assert app.tasks["tests.add"].apply_async((1, 2), ignore_result=True).get() is None


def test_calls_that_differ_have_routes_of_their_own(make: Make) -> None:
    """Routes are cached, and which options a call has depends on how it was made."""
    plain = make()
    plain.send_task("tests.add", (1, 2))
    (message,) = received(plain)
    app = make(jobhandle_durable=True)
    task = app.tasks["tests.add"]
    task.delay(1, 2)
    app.send_task("tests.add", (1, 2))
    task.apply_async((1, 2), ignore_result=True)
    app.jobs.submit(task.s(1, 2))
    with pytest.raises(ValidationError, match=r"^serializer: "):
        task.apply_async((1, 2), serializer="pickle")
    by_name = message.headers["ignore_result"]  # None; of Celery 5.6 False
    assert [message.headers["ignore_result"] for message in received(app)] == [False, by_name, True, False]
