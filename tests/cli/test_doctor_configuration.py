"""doctor: each finding about the configuration is provoked."""

from typing import Any

import pytest

from tests.cli.findings import NewApp, findings, level, line
from tests.job_factory import NOBODY_LISTENS

MEMORY, REDIS, RABBIT = "memory://", "redis://127.0.0.1:1/0", "amqp://127.0.0.1:1//"
LATE = {"task_acks_late": True}
CASES: list[tuple[str, str, dict[str, Any], str]] = [
    ("visibility_timeout", REDIS, {}, "OK"),
    ("visibility_timeout", REDIS, {"broker_transport_options": {"visibility_timeout": 2}}, "WARN"),
    ("visibility_timeout", REDIS, {"broker_transport_options": {"visibility_timeout": "soon"}}, "BAD"),
    ("visibility_timeout", REDIS, LATE, "WARN"),
    ("visibility_timeout", REDIS, {**LATE, "task_time_limit": 7200}, "WARN"),
    ("visibility_timeout", REDIS, {**LATE, "task_time_limit": 600}, "OK"),
    ("visibility_timeout", RABBIT, {}, "OK"),
    ("acks_late", REDIS, {}, "OK tasks acknowledge early"),
    ("acks_late", REDIS, LATE, "OK"),
    ("acks_late", RABBIT, LATE, "WARN"),
    ("acks_late", RABBIT, {**LATE, "task_time_limit": 60}, "OK"),
    ("worker lost", MEMORY, LATE, "OK"),
    ("worker lost", MEMORY, {**LATE, "task_reject_on_worker_lost": True}, "WARN"),
    (
        "worker lost",
        MEMORY,
        {"task_annotations": {"tests.add": {"retry_on_worker_lost": True}}},
        "WARN 1 tasks, such as tests.add, have retry_on_worker_lost",
    ),
    (
        "worker lost",
        MEMORY,
        {"task_reject_on_worker_lost": True, "task_annotations": {"*": {"max_attempts": 2}}},
        "OK",
    ),
    ("transport options", REDIS, {}, "OK"),
    (
        "transport options",
        REDIS,
        {"broker_transport_options": {"visibility_timeout": 60, "max_retries": 1}},
        "OK",
    ),
    (
        "transport options",
        REDIS,
        {"broker_transport_options": {"visibility_timout": 60}},
        "WARN broker_transport_options has visibility_timout",
    ),
    ("publisher confirms", REDIS, {}, "OK"),
    ("publisher confirms", RABBIT, {}, "WARN"),
    ("publisher confirms", RABBIT, {"broker_transport_options": {"confirm_publish": True}}, "OK"),
    ("prefetch", MEMORY, {"worker_prefetch_multiplier": 1}, "OK"),
    ("prefetch", MEMORY, {"worker_prefetch_multiplier": 4}, "OK"),
    ("prefetch", MEMORY, {"worker_prefetch_multiplier": 0}, "WARN"),
    ("result backend", MEMORY, {}, "OK no result_backend"),
    ("result backend", MEMORY, {"result_backend": "cache+memory://"}, "OK the result backend"),
    ("result backend", MEMORY, {"result_backend": NOBODY_LISTENS}, "WARN"),
    ("settings", MEMORY, {}, "OK"),
    ("settings", MEMORY, {"jobhandle_leese": 5}, "WARN the configuration has jobhandle_leese"),
    ("durable tasks", MEMORY, {}, "OK jobhandle_durable is False"),
    ("durable tasks", MEMORY, {"jobhandle_durable": True}, "OK jobhandle_durable is True"),
    ("durable tasks", MEMORY, {"jobhandle_durable": ["tests.*"]}, "OK each pattern"),
    (
        "durable tasks",
        MEMORY,
        {"jobhandle_durable": ["tests.*", "tset.*"]},
        "WARN jobhandle_durable has 'tset",
    ),
    ("durable tasks", MEMORY, {"jobhandle_durable": "tests.*"}, "BAD jobhandle_durable is 'tests.*'"),
    ("serializers", MEMORY, {}, "OK"),
    ("serializers", MEMORY, {"accept_content": ["yaml"]}, "BAD"),
    ("serializers", MEMORY, {"accept_content": ["json", "pickle"]}, "WARN"),
    ("serializers", MEMORY, {"task_serializer": "auth"}, "BAD"),
    ("serializers", MEMORY, {"accept_content": ["no-such"]}, "UNKNOWN"),
    ("eager", MEMORY, {}, "OK"),
    ("eager", MEMORY, {"task_always_eager": True}, "BAD"),
    ("pool", MEMORY, {}, "OK"),
    ("pool", MEMORY, {"worker_pool_start_method": "spawn"}, "BAD"),
    # A time limit that the pool does not enforce is reported (fault 30).
    ("time limits", MEMORY, {"worker_pool": "prefork"}, "OK the prefork pool enforces time limits"),
    ("time limits", MEMORY, {"worker_pool": "threads"}, "WARN the threads pool enforces no hard and no soft"),
    ("time limits", MEMORY, {"worker_pool": "solo"}, "WARN the solo pool enforces no hard and no soft"),
    ("time limits", MEMORY, {"worker_pool": "gevent"}, "WARN the gevent pool enforces no soft"),
    ("time limits", MEMORY, {"worker_pool": "some.module:Pool"}, "OK"),
]
"""The check, the broker, the settings, and the beginning of the finding."""


@pytest.mark.parametrize(("check", "broker", "settings", "finding"), CASES)
def test_configuration_is_checked(
    new_app: NewApp, check: str, broker: str, settings: dict[str, Any], finding: str
) -> None:
    assert line(new_app(broker, **settings), check).startswith(finding)


def test_disabled_events_are_a_warning(new_app: NewApp) -> None:
    assert [level for level, _ in findings(new_app(), "events")] == ["WARN", "WARN"]
    on = new_app(worker_send_task_events=True, task_send_sent_event=True)
    assert [level for level, _ in findings(on, "events")] == ["OK", "OK"]


@pytest.mark.parametrize(
    ("lease", "answers_in", "word"), [(60, 0.001, "OK"), (5, 0.001, "WARN"), (60, 6.0, "BAD")]
)
def test_short_lease_is_a_warning_or_bad(new_app: NewApp, lease: float, answers_in: float, word: str) -> None:
    assert level(new_app(jobhandle_lease=lease), "lease", database=answers_in) == word
